/* Which kernels this CPU has, the best first. */

#include <string.h>

#include "native.h"
#ifdef HAVE_X86
#include <cpuid.h>
#endif

const kernels *choose_kernels(const char *name)
{
    const kernels *have[5];
    int count = 0;
#ifdef HAVE_X86
    __builtin_cpu_init();
    unsigned a, b, c = 0, d;
    const int halves = __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C; /* not every compiler's cpu_supports knows it */
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && halves;
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vnni");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) have[count++] = &kernels_avx512bf16;
    if (avx512) have[count++] = &kernels_avx512vnni;
    if (avx2 && __builtin_cpu_supports("avxvnni")) have[count++] = &kernels_avxvnni;
    if (avx2) have[count++] = &kernels_avx2;
#endif
    have[count++] = &kernels_generic;
    for (int i = 0; i < count; i++)
        if (!name || !*name || !strcmp(have[i]->name, name)) return have[i];
    return NULL;
}
