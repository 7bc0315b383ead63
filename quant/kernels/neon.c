/* The kernels for NEON, which every 64-bit Arm processor has. */
#if defined(__aarch64__)
#define LANES_NEON
#define KERNEL_SET tinyq_neon
#define KERNEL_NAME "NEON"
#define RUNS runs
static int runs(void) { return 1; }
#include "encode.h"
#else
typedef int no_kernels_here;
#endif
