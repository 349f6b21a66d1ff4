/* auto.h: --auto, adapters that the prompt asks for.
 *
 *     rc = auto_choose(&m, &err);     // after the model is there, before prompts are read
 *
 * Each phrase of the prompt (retrieve/concepts.h) is asked for by weights (retrieve/find.h); the best adapter is taken
 * where it is good enough and does nothing that one before does. One whose name or trigger has the phrase in it goes
 * before, and for it half of what is asked for is enough, or a tenth where scores are likelihoods. Its trigger words
 * take the place of its class word in the phrase, or stand in front of it. Of more than K, by default two, the least
 * likely are left out, and standard error names them: where more share a picture, fewer show (tests/eval). Of several,
 * superpose:uncond=base is how they share it, unless another strategy was named: whatever weft clash says of the sets
 * that were measured, it shows as many as any other or more.
 */
#ifndef WEFT_AUTO_H
#define WEFT_AUTO_H

#include "making.h"

/* In a command's table of options. */
#define AUTO_OPTIONS(m)                                                                            \
    {"auto",                                                                                       \
     0,                                                                                            \
     OPTION_MAYBE,                                                                                 \
     &(m)->choose,                                                                                 \
     "[=K]",                                                                                       \
     "choose adapters of the repository by what their weights do, the K\nlikeliest, default 2: "   \
     "one a phrase of the prompt, or none; -v\nsays why",                                          \
     1,                                                                                            \
     16,                                                                                           \
     NULL},                                                                                        \
    {                                                                                              \
        "yes", 0, OPTION_FLAG, &(m)->yes, NULL,                                                    \
            "take what --auto proposes on models where it was not measured", 0, 0, NULL            \
    }

/* What was chosen for a phrase. */
struct auto_pick {
    char phrase[96];
    char *name; /* owned */
    int64_t key;
    size_t at, n;       /* the phrase's place in the prompt */
    bool named;         /* its name or a trigger says the phrase */
    double score, next; /* of it and of the adapter behind it */
};

/* m->pick, m->r's adapters, prompt and strategy. ERR_MISMATCH with a proposal where scores are not likelihoods and
 * --yes was not given. */
int auto_choose(struct making *m, struct err *err);
void auto_release(struct making *m);

#endif
