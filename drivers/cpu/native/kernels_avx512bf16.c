#include "native.h"
#ifdef HAVE_X86
#ifdef __clang__
#pragma clang attribute push(                                                                                            \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"))),                   \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#endif
#define BFLOAT_DOT
#include "vec_avx512.h"
#define KERNELS kernels_avx512bf16
#define NAME "avx512bf16"
#include "kernels.inc"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
