/* The types with blocks of 32 weights, without an importance matrix: a block's weights lie in consecutive lanes. */
#ifndef TINYQ_PLAIN_BLOCKS_H
#define TINYQ_PLAIN_BLOCKS_H

#include "blocks.h"
#include "search.h"

enum { PARTS = 32 / LANES };

INLINE void load_block(const float *x, vf *v)
{
    for (int p = 0; p < PARTS; p++)
        v[p] = f_load(x + p * LANES);
}

/* The first of the block's weights that is equal to `value`, which tells zeros of either sign apart. */
INLINE float first_equal(const float *x, const vf *v, float value)
{
    if (value != 0)
        return value;
    for (int p = 0; p < PARTS; p++) {
        unsigned bits = m_bits(f_eq(v[p], f_set(value)));
        if (bits)
            return x[p * LANES + __builtin_ctz(bits)];
    }
    return value;
}

INLINE float block_peak(const vf *v)
{
    vf most = f_abs(v[0]);
    for (int p = 1; p < PARTS; p++)
        most = f_max(f_abs(v[p]), most);
    return f_largest(most);
}

/* Whether the reference's conversions to integers are defined: its inverse of a subnormal scale can be infinite. */
INLINE int is_usable(float inverse) { return inverse < 3e38f && inverse > -3e38f; }

/* `quantize_row_q8_0_ref`. Returns whether the block is done; otherwise it is left to ggml. The same below. */
static int encode_q8_0(const float *x, void *out)
{
    block_q8_0 *y = out;
    vf v[PARTS];
    load_block(x, v);
    const float d = block_peak(v) / 127, inverse = d != 0 ? 1.0f / d : 0.0f;
    y->d = f16_from(d);
    for (int p = 0; p < PARTS; p++) {
        /* roundf: half away from zero */
        vf at = v[p] * f_set(inverse), whole = f_trunc(at), rest = at - whole, zero = f_zero();
        vf up = f_choose(f_lt(at, zero), f_set(-1.0f), f_set(1.0f));
        i_store_bytes(y->qs + p * LANES, f_to_int(whole + f_choose(f_ge(f_abs(rest), f_set(0.5f)), up, zero)));
    }
    return is_usable(inverse);
}

/* The weights as integers: min(most, (int8_t)(x * inverse + plus)). Returns a bit for each that is 16 or more. */
INLINE uint32_t block_integers(const vf *v, float inverse, float plus, int most, uint8_t *L)
{
    uint32_t fifth = 0;
    for (int p = 0; p < PARTS; p++) {
        vf l = f_min(v[p] * f_set(inverse) + f_set(plus), f_set((float)most)); /* truncated below */
        i_store_bytes(L + p * LANES, f_to_int(l));
        if (most > 15)
            fifth |= (uint32_t)m_bits(f_ge(l, f_set(16.0f))) << p * LANES;
    }
    return fifth;
}

INLINE void pack_nibbles(const uint8_t *L, uint8_t *qs)
{
    for (int j = 0; j < 16; j++)
        qs[j] = (uint8_t)((L[j] & 15) | L[j + 16] << 4);
}

/* The scale of Q4_0 and Q5_0: the weight of largest magnitude, with its sign, is the lowest integer. */
INLINE float symmetric_scale(const float *x, const vf *v, float lowest)
{
    const float peak = block_peak(v);
    if (peak == 0)
        return 0.0f / lowest;
    for (int p = 0; p < PARTS; p++) {
        unsigned bits = m_bits(f_eq(f_abs(v[p]), f_set(peak)));
        if (bits)
            return x[p * LANES + __builtin_ctz(bits)] / lowest;
    }
    return 0.0f;
}

/* `quantize_row_q4_0_ref` */
static int encode_q4_0(const float *x, void *out)
{
    block_q4_0 *y = out;
    uint8_t L[32];
    vf v[PARTS];
    load_block(x, v);
    const float d = symmetric_scale(x, v, -8), inverse = d != 0 ? 1.0f / d : 0.0f;
    y->d = f16_from(d);
    block_integers(v, inverse, 8.5f, 15, L);
    pack_nibbles(L, y->qs);
    return is_usable(inverse);
}

/* `quantize_row_q5_0_ref` */
static int encode_q5_0(const float *x, void *out)
{
    block_q5_0 *y = out;
    uint8_t L[32];
    vf v[PARTS];
    load_block(x, v);
    const float d = symmetric_scale(x, v, -16), inverse = d != 0 ? 1.0f / d : 0.0f;
    y->d = f16_from(d);
    const uint32_t fifth = block_integers(v, inverse, 16.5f, 31, L);
    memcpy(y->qh, &fifth, 4);
    pack_nibbles(L, y->qs);
    return is_usable(inverse);
}

/* The minimum and the scale of Q4_1 and Q5_1; v becomes v - min. */
INLINE float scale_and_minimum(const float *x, vf *v, float steps, float *minimum)
{
    vf low = v[0], high = v[0];
    for (int p = 1; p < PARTS; p++) {
        low = f_min(v[p], low);
        high = f_max(v[p], high);
    }
    *minimum = first_equal(x, v, f_least(low));
    const float d = (first_equal(x, v, f_largest(high)) - *minimum) / steps;
    for (int p = 0; p < PARTS; p++)
        v[p] = v[p] - f_set(*minimum);
    return d;
}

/* `quantize_row_q4_1_ref` */
static int encode_q4_1(const float *x, void *out)
{
    block_q4_1 *y = out;
    uint8_t L[32];
    float min;
    vf v[PARTS];
    load_block(x, v);
    const float d = scale_and_minimum(x, v, 15, &min), inverse = d != 0 ? 1.0f / d : 0.0f;
    y->d = f16_from(d);
    y->m = f16_from(min);
    block_integers(v, inverse, 0.5f, 15, L);
    pack_nibbles(L, y->qs);
    return is_usable(inverse) && d < 3e38f;
}

/* `quantize_row_q5_1_ref` */
static int encode_q5_1(const float *x, void *out)
{
    block_q5_1 *y = out;
    uint8_t L[32];
    float min;
    vf v[PARTS];
    load_block(x, v);
    const float d = scale_and_minimum(x, v, 31, &min), inverse = d != 0 ? 1.0f / d : 0.0f;
    y->d = f16_from(d);
    y->m = f16_from(min);
    const uint32_t fifth = block_integers(v, inverse, 0.5f, 31, L);
    memcpy(y->qh, &fifth, 4);
    pack_nibbles(L, y->qs);
    return is_usable(inverse) && d < 3e38f;
}

#endif
