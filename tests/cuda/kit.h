/* kit.h: adapters of any kind for any model, made up here, and a small UNet with some of them.
 *
 *     struct kit *k = kit_new(model, "a", KIT_LORA, 4, .3, seed);
 *     branch.adapter = k->a;
 *     kit_free(k);
 *
 * Only unet/ is needed, no importer of files.
 */
#ifndef WEFT_TESTS_CUDA_KIT_H
#define WEFT_TESTS_CUDA_KIT_H

#include "check.h"

#include "unet/bind.h"
#include "unet/gates.h"
#include "unet/model.h"
#include "unet/ops.h"

/* Of several each site has one, by turns. */
enum {
    KIT_LORA = 1,     /* products, at convolutions too (LoCon) */
    KIT_WHOLE = 2,    /* a dense change */
    KIT_LOHA = 4,     /* likewise, of two products */
    KIT_LOKR = 8,     /* and of a Kronecker product */
    KIT_DORA = 16,    /* a product and a gain */
    KIT_IA3 = 32,     /* a gain */
    KIT_GLORA = 64,   /* two products */
    KIT_BIAS = 128,   /* a shift */
    KIT_NORMS = 256,  /* of norms, besides */
    KIT_LINEAR = 512, /* only where a layer is a matrix product */
    KIT_TEXT = 1024,  /* and the text encoder */
    KIT_MIX = KIT_LORA | KIT_WHOLE | KIT_LOHA | KIT_LOKR | KIT_DORA | KIT_IA3 | KIT_GLORA | KIT_BIAS
};

struct kit {
    struct adapter *a;
    struct delta_list list;
    float **block; /* what its arrays point to */
    int n_block;
};
/* strength: how large what it changes is beside the weight it changes. */
struct kit *kit_new(const struct model *m, const char *name, unsigned kinds, int rank,
                    double strength, uint64_t seed);
void kit_free(struct kit *k);

/* Gates of a model's UNet: at some sites such as look at every channel, at some a number a place, at some none. Close with
 * gates_close. */
struct gates *kit_gates(const struct model *m, uint64_t seed);
/* The folder of a tiny model, under --data. Where it is `small` it is the one of fewer layers, whose gradients are
 * well-behaved: its deepest level has more than one place. */
const char *kit_model(bool small);

#endif
