/* The kernels for AVX-512: the foundation with BW, DQ and VL, as in every server processor since Skylake. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define LANES_AVX512
#define KERNEL_SET tinyq_avx512
#define KERNEL_NAME "AVX-512"
#define RUNS runs
static int runs(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#include "encode.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int no_kernels_here;
#endif
