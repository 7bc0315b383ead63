/* The kernels for SSE2, which every x86-64 processor has. */
#if defined(__x86_64__)
#define LANES_SSE2
#define KERNEL_SET tinyq_sse2
#define KERNEL_NAME "SSE2"
#define RUNS runs
static int runs(void) { return 1; }
#include "encode.h"
#else
typedef int no_kernels_here;
#endif
