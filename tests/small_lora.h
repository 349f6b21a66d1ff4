/* small_lora.h: writes small adapter files of many kinds, for tests of the repository.
 *
 *     small_lora(path, &(struct small){.seed = 3, .width = 768});
 */
#ifndef WEFT_TESTS_SMALL_LORA_H
#define WEFT_TESTS_SMALL_LORA_H

#include "unet/safetensors.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct small {
    int seed;               /* of the values */
    int width;              /* of the text, 0: 16 */
    int rank;               /* 0: 2 */
    const char *a, *b;      /* the two keys; NULL: kohya's for attn2.to_k */
    const char *meta[6][2]; /* key, value; ends at NULL */
};

static inline void small_lora(const char *path, const struct small *s)
{
    static const char site[] =
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    char key[2][200];
    int width = s->width ? s->width : 16, rank = s->rank ? s->rank : 2, n = 0;
    size_t count = (size_t)rank * (size_t)width;
    float *v = malloc((count + (size_t)rank * 8) * sizeof *v);
    struct err err;
    for (size_t i = 0; i < count + (size_t)rank * 8; i++)
        v[i] = (float)((i * 37 + (size_t)s->seed * 101) % 1009) / 1009 - 0.5f;
    snprintf(key[0], sizeof key[0], "%s.lora_down.weight", site);
    snprintf(key[1], sizeof key[1], "%s.lora_up.weight", site);
    struct safetensors_item item[2] = {
        {s->a ? s->a : key[0],
         {.dtype = DT_F32, .ndim = 2, .dim = {(uint64_t)rank, (uint64_t)width}, .data = v}},
        {s->b ? s->b : key[1],
         {.dtype = DT_F32, .ndim = 2, .dim = {8, (uint64_t)rank}, .data = v + count}}};
    while (n < 6 && s->meta[n][0])
        n++;
    cr_assert_eq(safetensors_write(path, item, 2, s->meta, (size_t)n, &err), 0, "%s", err.msg);
    free(v);
}

#endif
