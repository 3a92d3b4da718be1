#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O2") /* only CPUs older than AVX2 come here, and -O3 is half of the time that installing takes */
#endif

#include "native.h"
#include "vec_generic.h"
#define KERNELS kernels_generic
#define NAME "generic"
#include "kernels.inc"
