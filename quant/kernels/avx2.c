/* The kernels for AVX2. F16C came before it, in all processors. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c")
#endif
#define LANES_AVX2
#define KERNEL_SET tinyq_avx2
#define KERNEL_NAME "AVX2"
#define RUNS runs
static int runs(void) { return __builtin_cpu_supports("avx2"); }
#include "encode.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int no_kernels_here;
#endif
