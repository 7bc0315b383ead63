/* IQ4_NL and IQ4_XS: blocks of 32 weights, one per lane, rounded to the nearest of sixteen uneven values. */
#ifndef TINYQ_IQ4_H
#define TINYQ_IQ4_H

#include "super_blocks.h"

/* `kvalues_iq4nl` of ggml-common.h */
static const float iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* The place of the nearest value, the upper one of two as near: `best_index_int8`. Its differences are exact near the middle
 * between two values and far from equal elsewhere, so comparing with the middle gives the same. */
#if defined(LANES_AVX512)
INLINE vf nearest_index(vf v, vf *value)
{
    const vf values = f_load(iq4_values);
    const vf middles = {-115.5f, -93.5f, -74.0f, -57.0f, -42.0f, -28.5f, -16.0f, -4.5f, 7.0f, 19.0f, 31.5f, 45.5f, 61.0f, 79.0f,
                        101.0f, __builtin_inff()};
    /* A binary search whose middles are looked up by the places found so far. */
    __m512i at = _mm512_maskz_set1_epi32(f_ge(v, f_set(-4.5f)), 8);
    for (int step = 4; step; step /= 2) {
        vf middle = _mm512_permutexvar_ps(_mm512_add_epi32(at, _mm512_set1_epi32(step - 1)), middles);
        at = _mm512_mask_add_epi32(at, f_ge(v, middle), at, _mm512_set1_epi32(step));
    }
    *value = _mm512_permutexvar_ps(at, values);
    return _mm512_cvtepi32_ps(at);
}
#else
INLINE vf nearest_index(vf v, vf *value)
{
    vf index = f_zero(), found = f_set(iq4_values[0]);
    for (int i = 1; i < 16; i++) {
        vm above = f_ge(v, f_set((iq4_values[i - 1] + iq4_values[i]) / 2));
        index = f_choose(above, f_set((float)i), index);
        found = f_choose(above, f_set(iq4_values[i]), found);
    }
    *value = found;
    return index;
}
#endif

/* The best scale of the blocks in lanes (the loop over ib of `quantize_row_iq4_nl_impl` with ntry 7). */
INLINE vf search_uneven(const float *x, const float *w)
{
    enum { AT_ONCE = 3 };
    const vf zero = f_zero();
    vf amax, max = largest_of(32, x, &amax);
    vm dead = f_lt(amax, f_set(GROUP_MAX_EPS));
    vf d = zero, best = zero, sum_qx[AT_ONCE], sum_q2[AT_ONCE], inverse[AT_ONCE];
    for (int first = -8; first <= 7; first += first == -8 ? 1 : AT_ONCE) {
        const int count = first == -8 ? 1 : AT_ONCE; /* the first is the reference's own start, then -7 to 7 */
        for (int s = 0; s < count; s++) {
            inverse[s] = first == -8 ? f_set(1.0f) / ((zero - max) / f_set(iq4_values[0])) : f_set(first + s + iq4_values[0]) / max;
            sum_qx[s] = sum_q2[s] = zero;
        }
        for (int i = 0; i < 32; i++) {
            vf v = f_load(x + i * LANES), wi = f_load(w + i * LANES);
            for (int s = 0; s < count; s++) {
                vf q;
                nearest_index(inverse[s] * v, &q);
                vf wq = wi * q;
                sum_qx[s] = sum_qx[s] + wq * v;
                sum_q2[s] = sum_q2[s] + wq * q;
            }
        }
        for (int s = 0; s < count; s++) {
            vm some = f_gt(sum_q2[s], zero);
            vf scale = sum_qx[s] / sum_q2[s];
            vm better = first == -8 ? f_eq(zero, zero) : m_and(some, f_gt(sum_qx[s] * sum_qx[s], best * sum_q2[s]));
            d = f_choose(better, f_choose(some, scale, zero), d);
            best = f_choose(better, d * sum_qx[s], best);
        }
    }
    return f_choose(dead, zero, d);
}

/* Scales of `blocks` blocks; b->w and b->x hold the lanes afterwards. `each` blocks share a mean square, factor times b->sigma2. */
INLINE void find_uneven_scales(batch *b, const float *sigma2, int blocks, const float *x, const float *importance)
{
    for (int first = 0; first < blocks; first += LANES) {
        float *at = b->x + first * 32, *w = b->w + first * 32;
        to_lanes(x + first * 32, 32, at);
        if (importance) {
            to_lanes(importance + first * 32, 32, w);
            vf sigma = f_load(sigma2 + first);
            for (int i = 0; i < 32; i++) {
                vf v = f_load(at + i * LANES);
                f_store(w + i * LANES, f_load(w + i * LANES) * f_sqrt(sigma + v * v));
            }
        } else {
            for (int i = 0; i < 32; i++) {
                vf v = f_load(at + i * LANES);
                f_store(w + i * LANES, v * v);
            }
        }
        f_store(b->scale + first, search_uneven(at, w));
    }
}

/* The integers of all blocks for the inverse scales in b->inverse. */
INLINE void round_uneven(batch *b, int blocks)
{
    for (int first = 0; first < blocks; first += LANES) {
        vf inverse = f_load(b->inverse + first), value;
        for (int i = 0; i < 32; i += 4) {
            vi l[4];
            for (int j = 0; j < 4; j++)
                l[j] = f_to_int(nearest_index(inverse * f_load(b->x + first * 32 + (i + j) * LANES), &value));
            bytes_from_lanes(l[0], l[1], l[2], l[3], b->L + first * 32, 32, i);
        }
    }
}

INLINE void pack_block_nibbles(const uint8_t *L, uint8_t *qs)
{
    for (int j = 0; j < 16; j++)
        qs[j] = (uint8_t)(L[j] | L[j + 16] << 4);
}

/* The mean squares of `blocks` runs of n weights, for each block of 32: 2 / n times the sum. */
static void mean_squares(int n, int blocks, const float *x, float *sigma2)
{
    for (int first = 0; first < blocks; first += 4 * n / 32) {
        float sums[4] = {0, 0, 0, 0};
        add_squares(x + first * 32, n, n, sums);
        for (int i = 0; i < 4 * n / 32; i++)
            sigma2[first + i] = sums[i / (n / 32)] * (2.0f / n);
    }
}

/* `quantize_iq4_nl` */
static void encode_iq4_nl(batch *b, int supers, const float *x, const float *importance, void *out)
{
    const int blocks = supers * 8;
    float sigma2[BATCH / 32];
    if (importance)
        mean_squares(32, blocks, x, sigma2);
    find_uneven_scales(b, sigma2, blocks, x, importance);
    for (int i = 0; i < blocks; i++) {
        b->inverse[i] = b->scale[i] != 0 ? 1 / b->scale[i] : 0;
        if (!(b->inverse[i] < 3e38f && b->inverse[i] > -3e38f))
            b->hard |= 1u << i / 8;
    }
    round_uneven(b, blocks);
    for (int i = 0; i < blocks; i++) {
        block_iq4_nl *y = (block_iq4_nl *)out + i;
        y->d = f16_from(b->scale[i]);
        pack_block_nibbles(b->L + 32 * i, y->qs);
    }
}

/* `quantize_iq4_xs` */
static void encode_iq4_xs(batch *b, int supers, const float *x, const float *importance, void *out)
{
    float sigma2[BATCH / 32];
    if (importance)
        mean_squares(SUPER, supers * 8, x, sigma2);
    find_uneven_scales(b, sigma2, supers * 8, x, importance);
    for (int s = 0; s < supers; s++) {
        block_iq4_xs *y = (block_iq4_xs *)out + s;
        float largest = 0, size = 0;
        for (int t = 8 * s; t < 8 * s + 8; t++) {
            float a = b->scale[t] < 0 ? -b->scale[t] : b->scale[t];
            if (a > size) {
                size = a;
                largest = b->scale[t];
            }
        }
        const float d = -largest / 32, inverse = d != 0 ? 1 / d : 0.0f;
        y->d = f16_from(d);
        y->scales_h = 0;
        memset(y->scales_l, 0, sizeof y->scales_l);
        for (int j = 0; j < 8; j++) {
            int l = nearest_int(inverse * b->scale[8 * s + j]);
            l = l < -32 ? -32 : l > 31 ? 31 : l;
            const float dl = d * l, idl = dl != 0 ? 1 / dl : 0.0f;
            b->inverse[8 * s + j] = idl;
            if (!(idl < 3e38f && idl > -3e38f && inverse < 3e38f && inverse > -3e38f))
                b->hard |= 1u << s;
            y->scales_l[j / 2] |= (uint8_t)(((l + 32) & 15) << 4 * (j % 2));
            y->scales_h |= (uint16_t)((l + 32) >> 4 << 2 * j);
        }
    }
    round_uneven(b, supers * 8);
    for (int s = 0; s < supers; s++)
        for (int i = 0; i < 8; i++)
            pack_block_nibbles(b->L + s * SUPER + 32 * i, ((block_iq4_xs *)out + s)->qs + 16 * i);
}

#endif
