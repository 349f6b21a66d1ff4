/* AVX2 and FMA: vectors of eight. Compiled with -mavx2 -mfma (Makefile). */
#ifdef __AVX2__
#include <immintrin.h>

#define VW         8
#define MR         4
#define VF         __m256
#define VI         int __attribute__((vector_size(32)))
#define V_MAX      _mm256_max_ps
#define V_MIN      _mm256_min_ps
#define TABLE      kernels_avx2
#define TABLE_NAME "avx2"
#include "kernels.inc"
#endif
