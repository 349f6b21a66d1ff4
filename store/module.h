/* module.h: the arrays of an adapter file, gathered by the weight they change.
 *
 * Every key is a module's name and an ending: "lora_unet_mid_block_attentions_0_proj_in" and
 * ".lora_up.weight". modules_read knows all endings of all families (one table), brings names to their
 * canonical form, and joins what belongs together, whatever the spelling.
 *
 *     struct modules m;
 *     modules_read(&m, st, path, &err);
 *     for (int i = 0; i < m.n; i++)
 *         if (m.at[i].part[PART_LORA_UP]) …
 *     modules_release(&m);
 */
#ifndef WEFT_MODULE_H
#define WEFT_MODULE_H

#include "tensor_file.h"

enum part {
    PART_LORA_DOWN,
    PART_LORA_UP,
    PART_LORA_MID,
    PART_LORA_BIAS,
    PART_ALPHA,
    PART_SCALE,
    PART_DORA_SCALE,
    PART_MAGNITUDE,
    PART_HADA_W1A,
    PART_HADA_W1B,
    PART_HADA_W2A,
    PART_HADA_W2B,
    PART_HADA_T1,
    PART_HADA_T2,
    PART_LOKR_W1,
    PART_LOKR_W1A,
    PART_LOKR_W1B,
    PART_LOKR_W2,
    PART_LOKR_W2A,
    PART_LOKR_W2B,
    PART_LOKR_T1,
    PART_LOKR_T2,
    PART_DIFF,
    PART_DIFF_B,
    PART_W_NORM,
    PART_B_NORM,
    PART_WEIGHT,
    PART_ON_INPUT,
    PART_IA3_L,
    PART_GLORA_A1,
    PART_GLORA_A2,
    PART_GLORA_B1,
    PART_GLORA_B2,
    PART_GLORA_BM,
    PART_OFT_BLOCKS,
    PART_OFT_DIAG,
    PART_OFT_RESCALE,
    PART_OFT_R,
    PART_BOFT_R,
    PART_BOFT_S,
    PART_SHIRA_WEIGHT,
    PART_SHIRA_INDICES,
    PART_COUNT
};

struct module {
    char site[256];                       /* canonical, or "?." and the name as it stands */
    const struct array *part[PART_COUNT]; /* borrowed; NULL where there is none */
    const char *style;                    /* how its keys are spelt: "kohya", "peft", … */
};

struct modules {
    struct module *at; /* by site */
    int n;
};
/* Refuses keys of no known ending, and a part that is there twice. */
int modules_read(struct modules *m, const struct tensor_file *st, const char *path,
                 struct err *err);
void modules_release(struct modules *m);
/* True where the key has a known ending. */
bool module_knows(const char *key);

#endif
