/* The types with blocks of 32 weights, with an importance matrix: LANES blocks in lanes, of any rows. */
#ifndef TINYQ_WEIGHTED_BLOCKS_H
#define TINYQ_WEIGHTED_BLOCKS_H

#include "plain_blocks.h"
#include "super_blocks.h"

typedef struct {
    batch b;
    float sigma2[BATCH / 32];      /* the mean square of each block's row */
    uint8_t hard[BATCH / 32];      /* whether a block is left to ggml */
} weighted_batch;

typedef void weighted_encoder(weighted_batch *w, int blocks, const float *x, const float *importance, void *out);

/* weight[j] = importance[j] * sqrt(sigma2 + x[j] * x[j]) */
INLINE void weigh_blocks(weighted_batch *w, int first, const float *x, const float *importance)
{
    float *at = w->b.x + first * 32, *weights = w->b.w + first * 32;
    to_lanes(x + first * 32, 32, at);
    to_lanes(importance + first * 32, 32, weights);
    vf sigma = f_load(w->sigma2 + first);
    for (int i = 0; i < 32; i++) {
        vf v = f_load(at + i * LANES);
        f_store(weights + i * LANES, f_load(weights + i * LANES) * f_sqrt(sigma + v * v));
    }
}

INLINE void keep_integers(weighted_batch *w, const found *f, int first, float low, float high, float offset)
{
    const vf zero = f_zero(), base = f_choose(f->dead, zero, f_set(offset));
    const vf inverse = f_choose(f->dead, zero, f->inverse), shift = f_choose(f->dead, zero, f->shift);
    for (int i = 0; i < 32; i += 4) {
        vi l[4];
        for (int j = 0; j < 4; j++) {
            vf v = f_load(w->b.x + first * 32 + (i + j) * LANES);
            l[j] = f_to_int(nearest_within(inverse * (v - shift), f_set(low), f_set(high)) + base);
        }
        bytes_from_lanes(l[0], l[1], l[2], l[3], w->b.L + first * 32, 32, i);
    }
    unsigned bits = m_bits(f->hard);
    for (int lane = 0; lane < LANES; lane++)
        w->hard[first + lane] = bits >> lane & 1;
    f_store(w->b.scale + first, f->scale);
    f_store(w->b.min + first, f->min);
}

/* `make_qx_quants` for Q4_0 and Q5_0 */
INLINE void symmetric_blocks(weighted_batch *w, int blocks, const float *x, const float *importance, int nmax)
{
    for (int first = 0; first < blocks; first += LANES) {
        weigh_blocks(w, first, x, importance);
        found f = search_symmetric(32, nmax, w->b.x + first * 32, w->b.w + first * 32);
        keep_integers(w, &f, first, (float)-nmax, (float)(nmax - 1), (float)nmax);
    }
}

/* `make_qkx3_quants` for Q4_1 and Q5_1 */
INLINE void shifted_blocks(weighted_batch *w, int blocks, const float *x, const float *importance, int nmax)
{
    for (int first = 0; first < blocks; first += GROUPS * LANES) {
        found f[GROUPS];
        for (int g = 0; g < GROUPS; g++)
            weigh_blocks(w, first + g * LANES, x, importance);
        search_scale_min(32, (float)nmax, w->b.x + first * 32, w->b.w + first * 32, -0.9f, 0.05f, 36, 0, f);
        for (int g = 0; g < GROUPS; g++)
            keep_integers(w, &f[g], first + g * LANES, 0.0f, (float)nmax, 0.0f);
    }
}

/* `quantize_row_q4_0_impl` */
static void encode_weighted_q4_0(weighted_batch *w, int blocks, const float *x, const float *importance, void *out)
{
    symmetric_blocks(w, blocks, x, importance, 8);
    for (int i = 0; i < blocks; i++) {
        block_q4_0 *y = (block_q4_0 *)out + i;
        y->d = f16_from(w->b.scale[i]);
        pack_nibbles(w->b.L + 32 * i, y->qs);
    }
}

/* The fifth bits of 32 weights. */
INLINE void pack_fifth(const uint8_t *L, uint8_t *qh)
{
    uint32_t bits = 0;
    for (int j = 0; j < 32; j++)
        bits |= (uint32_t)(L[j] >> 4 & 1) << j;
    memcpy(qh, &bits, 4);
}

/* `quantize_row_q5_0_impl` */
static void encode_weighted_q5_0(weighted_batch *w, int blocks, const float *x, const float *importance, void *out)
{
    symmetric_blocks(w, blocks, x, importance, 16);
    for (int i = 0; i < blocks; i++) {
        block_q5_0 *y = (block_q5_0 *)out + i;
        y->d = f16_from(w->b.scale[i]);
        pack_nibbles(w->b.L + 32 * i, y->qs);
        pack_fifth(w->b.L + 32 * i, y->qh);
    }
}

/* `quantize_row_q4_1_impl` */
static void encode_weighted_q4_1(weighted_batch *w, int blocks, const float *x, const float *importance, void *out)
{
    shifted_blocks(w, blocks, x, importance, 15);
    for (int i = 0; i < blocks; i++) {
        block_q4_1 *y = (block_q4_1 *)out + i;
        y->d = f16_from(w->b.scale[i]);
        y->m = f16_from(w->b.min[i]);
        pack_nibbles(w->b.L + 32 * i, y->qs);
    }
}

/* `quantize_row_q5_1_impl` */
static void encode_weighted_q5_1(weighted_batch *w, int blocks, const float *x, const float *importance, void *out)
{
    shifted_blocks(w, blocks, x, importance, 31);
    for (int i = 0; i < blocks; i++) {
        block_q5_1 *y = (block_q5_1 *)out + i;
        y->d = f16_from(w->b.scale[i]);
        y->m = f16_from(w->b.min[i]);
        pack_nibbles(w->b.L + 32 * i, y->qs);
        pack_fifth(w->b.L + 32 * i, y->qh);
    }
}

#endif
