/* alone.h: adapters of the repository each by itself, on what it is called: what weft preview and weft profile
 * share.
 *
 *     alone_options(o, &a);                         // and the command's own behind them
 *     rc = alone_parse(&a, o, argc, argv, &err);    // a.rest: the names
 *     rc = rc < 0 ? rc : alone_repository(&a, &err);
 *     rc = rc < 0 ? rc : alone_model(&a, &err);
 *     rc = rc < 0 ? rc : alone_open(&a, &adapter, &p, &err);
 *     rc = rc < 0 ? rc : making_plan(&a.m, &p, a.n, &err);
 *     alone_release(&a);
 */
#ifndef WEFT_ALONE_H
#define WEFT_ALONE_H

#include "making.h"

struct alone {
    struct making m;
    const char *prompt; /* behind trigger words; NULL: these alone, else the class word or name */
    bool json;
    const char **rest; /* [n] owned array of borrowed names */
    int n;
};

/* Returns the end of the table, where the command puts its own and a last one without a name. */
struct option *alone_options(struct option *o, struct alone *a);
int alone_parse(struct alone *a, const struct option *o, int argc, char **argv, struct err *err);
/* Opens it for writing. */
int alone_repository(struct alone *a, struct err *err);
int alone_model(struct alone *a, struct err *err);
/* What calls an adapter: its first group of trigger words, else its class word, else its name. A new string. */
int alone_words(const struct making *m, const struct repo_adapter *a, char **out, struct err *err);
/* Loads all that this adapter needs, fills in p and opens a->m.g. ERR_MISMATCH for one that the model cannot
 * use. */
int alone_open(struct alone *a, const struct repo_adapter *adapter, struct picture *p,
               struct err *err);
void alone_release(struct alone *a);

#endif
