/* AVX-512: vectors of sixteen. Compiled with -mavx512f … (Makefile). */
#ifdef __AVX512F__
#include <immintrin.h>

#define VW         16
#define MR         8
#define VF         __m512
#define VI         int __attribute__((vector_size(64)))
#define V_MAX      _mm512_max_ps
#define V_MIN      _mm512_min_ps
#define TABLE      kernels_avx512
#define TABLE_NAME "avx512"
#include "kernels.inc"
#endif
