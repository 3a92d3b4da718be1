#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
/* Only CPUs older than AVX2 come here, and -O3 takes twice as long to compile; gcse takes a sixth of the rest and gains
 * nothing. */
#pragma GCC optimize("O2,no-gcse")
#endif

#include "native.h"
#include "vec_generic.h"
#define KERNELS kernels_generic
#define NAME "generic"
#include "kernels.inc"
