/* Block layouts (ggml-common.h of ggml 0.25.3), float16, and what the instruction sets' encoders share. */
#ifndef TINYQ_BLOCKS_H
#define TINYQ_BLOCKS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { SUPER = 256, BATCH = 16 * SUPER }; /* weights in a super-block, and encoded together */

/* `enum ggml_type` */
enum {
    T_F32 = 0, T_F16 = 1, T_Q4_0 = 2, T_Q4_1 = 3, T_Q5_0 = 6, T_Q5_1 = 7, T_Q8_0 = 8, T_Q2_K = 10, T_Q3_K = 11, T_Q4_K = 12,
    T_Q5_K = 13, T_Q6_K = 14, T_IQ4_NL = 20, T_IQ4_XS = 23, T_BF16 = 30
};

typedef struct { uint16_t d; uint8_t qs[16]; } block_q4_0;
typedef struct { uint16_t d, m; uint8_t qs[16]; } block_q4_1;
typedef struct { uint16_t d; uint8_t qh[4], qs[16]; } block_q5_0;
typedef struct { uint16_t d, m; uint8_t qh[4], qs[16]; } block_q5_1;
typedef struct { uint16_t d; int8_t qs[32]; } block_q8_0;
typedef struct { uint8_t scales[16], qs[64]; uint16_t d, dmin; } block_q2_K;
typedef struct { uint8_t hmask[32], qs[64], scales[12]; uint16_t d; } block_q3_K;
typedef struct { uint16_t d, dmin; uint8_t scales[12], qs[128]; } block_q4_K;
typedef struct { uint16_t d, dmin; uint8_t scales[12], qh[32], qs[128]; } block_q5_K;
typedef struct { uint8_t ql[128], qh[64]; int8_t scales[16]; uint16_t d; } block_q6_K;
typedef struct { uint16_t d; uint8_t qs[16]; } block_iq4_nl;
typedef struct { uint16_t d, scales_h; uint8_t scales_l[4], qs[128]; } block_iq4_xs;

/* Rounds to float16, ties to even; too large becomes infinite. NaN does not occur in finite super-blocks that are kept. */
static inline uint16_t f16_from(float x)
{
    uint32_t bits, size;
    memcpy(&bits, &x, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    size = bits & 0x7fffffff;
    if (size >= 0x47800000) /* 65536 and more */
        return sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00);
    if (size < 0x38800000) { /* below 2^-14: float16's subnormal numbers are multiples of 2^-24, the unit of 0.5 in float32 */
        float shifted;
        memcpy(&shifted, &size, 4);
        shifted += 0.5f;
        memcpy(&bits, &shifted, 4);
        return sign | (uint16_t)(bits - 0x3f000000);
    }
    size += 0xc8000fff + (size >> 13 & 1); /* the exponent's bias is 112 less; half a unit more, or a little less on a tie */
    return sign | (uint16_t)(size >> 13);
}

/* Exact. */
static inline float f32_from(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = (uint32_t)(half & 0x7fff) << 13, bits;
    float value;
    memcpy(&value, &rest, 4);
    value *= 0x1p112f;
    memcpy(&bits, &value, 4);
    bits |= sign | (rest >= 0x0f800000 ? 0x7f800000 : 0);
    memcpy(&value, &bits, 4);
    return value;
}

/* `nearest_int` of ggml-quants.c: beyond 2^22 it is not the nearest integer, but what these bits are. */
static inline int nearest_int(float x)
{
    int bits;
    x += 12582912.0f;
    memcpy(&bits, &x, 4);
    return (bits & 0x007fffff) - 0x00400000;
}

/* `ggml_quantize_chunk` of ggml.h */
typedef size_t chunk_fn(int type, const float *src, void *dst, int64_t start, int64_t nrows, int64_t n_per_row, const float *imatrix);

/* Rows to encode, and what came of it. */
typedef struct {
    int type;              /* the type to encode in */
    int source;            /* T_F32, T_F16 or T_BF16: how src is stored */
    const void *src;       /* nrows rows of n_per_row weights */
    int64_t nrows, n_per_row;
    const float *imatrix;  /* n_per_row importances, or NULL */
    uint8_t *dst;
    chunk_fn *ggml;        /* encodes what the kernels leave to it */
    uint32_t peak;         /* out: the bits of the largest magnitude; the bytes are undefined if it is not finite */
    int64_t left;          /* out: weights left to ggml */
} encode_job;

typedef struct {
    const char *name;
    int (*runs)(void);              /* whether the processor has the instructions */
    int (*encode)(encode_job *job); /* 0, or -1 for a type that it does not have */
} kernel_set;

extern const kernel_set tinyq_sse2, tinyq_avx2, tinyq_avx512, tinyq_neon;

#endif
