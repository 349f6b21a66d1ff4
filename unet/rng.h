/* rng.h: the random numbers pictures start from.
 *
 * RNG_TORCH is torch.randn on the CPU: MT19937 seeded with the low 32 bits of the seed, PyTorch's
 * own Box-Muller order for 16 values and more, its double path below. Bit for bit what torch gives
 * under ATEN_CPU_CAPABILITY=default with the same libm (glibc); within 3e-6 of its vector code. A
 * generator carries on from call to call as torch.Generator does.
 * RNG_PHILOX is torch.randn on CUDA to about 3e-7: Philox4x32-10, one counter a call.
 *
 *     struct rng r;
 *     rng_init(&r, RNG_TORCH, 42);
 *     rng_normal(&r, latent, 4 * 64 * 64);       // in torch's order: [c, h, w]
 */
#ifndef WEFT_RNG_H
#define WEFT_RNG_H

#include <stddef.h>
#include <stdint.h>

enum rng_kind { RNG_TORCH, RNG_PHILOX };

struct rng {
    enum rng_kind kind;
    uint64_t seed;
    uint32_t mt[624]; /* RNG_TORCH */
    int left;         /* values of mt not yet used */
    double spare;     /* the second normal of a pair, double path */
    int has_spare;
    uint32_t offset; /* RNG_PHILOX: calls made */
};

void rng_init(struct rng *r, enum rng_kind kind, uint64_t seed);
/* n standard normal values, in the order torch.randn(n) gives them. */
void rng_normal(struct rng *r, float *out, size_t n);
/* The next 32 bits of MT19937; RNG_TORCH only. */
uint32_t rng_u32(struct rng *r);

#endif
