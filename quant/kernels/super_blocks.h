/* The K-quants: batches of up to 16 super-blocks of 256 weights, whose sub-blocks of 16 or 32 weights lie in lanes.
 *
 * A batch goes through four stages: the scale (and minimum) of each sub-block (search.h); the scales of each super-block and the
 * sub-blocks' scales as small integers; each weight as an integer, from the scales as they are stored; and the packing of bits.
 */
#ifndef TINYQ_SUPER_BLOCKS_H
#define TINYQ_SUPER_BLOCKS_H

#include "blocks.h"
#include "search.h"

enum { MOST_SUB = BATCH / 16 };

/* What a sub-block's search needs beside the weights, for each type; `rounds` is nstep of the reference. */
typedef struct {
    int n;                /* weights in a sub-block */
    int nmax;             /* the largest integer, or the size of the range's lower end where there is no minimum */
    float rmin, rdelta;
    int rounds, use_mad;
} search_plan;

typedef struct {
    float x[BATCH];                   /* the weights: n vectors for each LANES sub-blocks */
    float w[BATCH];                   /* their weights in the search, likewise */
    float sigma2[16];                 /* of each super-block, for the weights of an importance matrix */
    float scale[MOST_SUB], min[MOST_SUB], sum_w[MOST_SUB];
    float inverse[MOST_SUB], shift[MOST_SUB], offset[MOST_SUB]; /* the L of the search, where the stored scale is 0 */
    float d[MOST_SUB], dm[MOST_SUB];  /* scales and minima as they are stored */
    int ls[MOST_SUB], lm[MOST_SUB];   /* scales and minima as integers */
    uint8_t L[BATCH];                 /* the weights as integers, in order */
    unsigned hard;                    /* a bit for each super-block that is left to ggml */
} batch;

/* Marks the super-blocks of the lanes in `hard`; `first` is the first lane's sub-block, `each` their number in a super-block. */
INLINE void mark_hard(batch *b, vm hard, int first, int each)
{
    unsigned bits = m_bits(hard);
    for (int lane = 0; bits; lane++, bits >>= 1)
        if (bits & 1)
            b->hard |= 1u << (first + lane) / each;
}

typedef float four __attribute__((vector_size(16)));

/* Adds the squares of four rows of n numbers to their sums, each in order. */
static void add_squares(const float *x, long step, int n, float *sums)
{
    four total;
    memcpy(&total, sums, sizeof total);
    for (int i = 0; i < n; i += 4) {
        four at[4];
        float moved[16];
        transpose4(x + i, step, moved, 4);
        memcpy(at, moved, sizeof at);
        for (int j = 0; j < 4; j++)
            total = total + at[j] * at[j];
    }
    memcpy(sums, &total, sizeof total);
}

/* How the search weighs a weight. */
typedef enum { BY_SIZE, BY_SIZE_AND_MEAN, BY_IMPORTANCE } weighing;

/* Fills b->w for the group of lanes at sub-block `first`; with importance also b->sum_w. */
INLINE void weigh(batch *b, weighing how, int n, int first, int each, const float *importance)
{
    const float *x = b->x + first * n;
    float *w = b->w + first * n;
    if (how == BY_SIZE) {
        for (int i = 0; i < n; i++)
            f_store(w + i * LANES, f_abs(f_load(x + i * LANES)));
    } else if (how == BY_SIZE_AND_MEAN) {
        vf sum = f_zero();
        for (int i = 0; i < n; i++) {
            vf v = f_load(x + i * LANES);
            sum = sum + v * v;
        }
        vf mean = f_sqrt(sum / f_set((float)n));
        for (int i = 0; i < n; i++)
            f_store(w + i * LANES, mean + f_abs(f_load(x + i * LANES)));
    } else {
        float sigma2[LANES];
        for (int lane = 0; lane < LANES; lane++)
            sigma2[lane] = b->sigma2[(first + lane) / each];
        to_lanes(importance + first * n, n, w);
        vf sigma = f_load(sigma2), sum = f_zero();
        for (int i = 0; i < n; i++) {
            vf v = f_load(x + i * LANES);
            vf weight = f_load(w + i * LANES) * f_sqrt(sigma + v * v);
            f_store(w + i * LANES, weight);
            sum = sum + weight;
        }
        f_store(b->sum_w + first, sum);
    }
}

INLINE void store_found(batch *b, const found *f, int first, float offset)
{
    vf zero = f_zero();
    f_store(b->scale + first, f->scale);
    f_store(b->min + first, zero - f->min);
    f_store(b->inverse + first, f_choose(f->dead, zero, f->inverse));
    f_store(b->shift + first, f_choose(f->dead, zero, f->shift));
    f_store(b->offset + first, f_choose(f->dead, zero, f_set(offset)));
}

/* Stage one for types with a minimum. */
INLINE void find_scales_and_minima(batch *b, const search_plan *p, int subs, weighing how, const float *x, const float *importance)
{
    const int each = SUPER / p->n;
    for (int first = 0; first < subs; first += GROUPS * LANES) {
        found f[GROUPS];
        for (int g = 0; g < GROUPS; g++) {
            to_lanes(x + (first + g * LANES) * p->n, p->n, b->x + (first + g * LANES) * p->n);
            weigh(b, how, p->n, first + g * LANES, each, importance);
        }
        search_scale_min(p->n, (float)p->nmax, b->x + first * p->n, b->w + first * p->n, p->rmin, p->rdelta, p->rounds,
                         p->use_mad, f);
        for (int g = 0; g < GROUPS; g++) {
            store_found(b, &f[g], first + g * LANES, 0.0f);
            mark_hard(b, f[g].hard, first + g * LANES, each);
        }
    }
}

/* Stage three: each weight from its sub-block's stored scale d and minimum dm. Where d is 0, the search's own integer stays. */
INLINE void round_weights(batch *b, int n, int subs, float lowest, float highest, float offset, const float *kept)
{
    const vf low = f_set(lowest), high = f_set(highest), off = f_set(offset), zero = f_zero();
    for (int first = 0; first < subs; first += LANES) {
        const float *x = b->x + first * n;
        vf d = f_load(b->d + first), dm = f_load(b->dm + first);
        vm none = f_eq(d, zero), near = f_eq(zero, zero);
        vi l[4];
        if (!m_bits(none)) {
            for (int i = 0; i < n; i += 4) {
                for (int j = 0; j < 4; j++) {
                    vf v = (f_load(x + (i + j) * LANES) + dm) / d;
                    near = m_and(near, f_lt(f_abs(v), f_set(NEAREST_LIMIT)));
                    l[j] = f_to_int(nearest_within(v, low, high) + off);
                }
                bytes_from_lanes(l[0], l[1], l[2], l[3], b->L + first * n, n, i);
            }
        } else {
            vf inverse = f_load(b->inverse + first), shift = f_load(b->shift + first), base = f_load(b->offset + first);
            for (int i = 0; i < n; i += 4) {
                for (int j = 0; j < 4; j++) {
                    vf at = f_load(x + (i + j) * LANES), v = (at + dm) / d;
                    vf old = kept ? f_load(kept + first * n + (i + j) * LANES) : nearest_within(inverse * (at - shift), low, high);
                    near = m_and(near, m_or(none, f_lt(f_abs(v), f_set(NEAREST_LIMIT))));
                    l[j] = f_to_int(f_choose(none, old + base, nearest_within(v, low, high) + off));
                }
                bytes_from_lanes(l[0], l[1], l[2], l[3], b->L + first * n, n, i);
            }
        }
        mark_hard(b, m_andnot(f_eq(zero, zero), near), first, SUPER / n);
    }
}

/* Stage two with an importance matrix: `make_qp_quants` over the sub-blocks of each super-block. */
static void positive_scales(batch *b, int each, int supers, int nmax, const float *numbers, int *integers, float *scales)
{
    float x[16 * LANES], w[16 * LANES], L[16 * LANES];
    for (int first = 0; first < supers; first += LANES) {
        to_lanes(numbers + first * each, each, x);
        to_lanes(b->sum_w + first * each, each, w);
        found f = search_positive(each, nmax, x, w, L);
        f_store(scales + first, f.scale);
        mark_hard(b, f.hard, first, 1);
        for (int lane = 0; lane < LANES; lane++)
            for (int j = 0; j < each; j++)
                integers[(first + lane) * each + j] = (int)L[j * LANES + lane];
    }
}

static float largest_scale(const float *numbers, int n)
{
    float largest = 0;
    for (int j = 0; j < n; j++)
        if (numbers[j] > largest)
            largest = numbers[j];
    return largest;
}

static void find_sigma2(batch *b, int supers, const float *x, float factor)
{
    memset(b->sigma2, 0, sizeof b->sigma2);
    for (int s = 0; s < supers; s += 4)
        add_squares(x + s * SUPER, SUPER, SUPER, b->sigma2 + s);
    for (int s = 0; s < supers; s++)
        b->sigma2[s] = factor * b->sigma2[s] / SUPER;
}

/* `quantize_row_q4_K_ref`, `quantize_row_q5_K_ref` and their _impl with an importance: stages one to three. d and dmin of
 * super-block s go to scales[2 * s] and the next. */
static void encode_k4(batch *b, int supers, const float *x, const float *importance, int nmax, uint16_t *halves)
{
    const int subs = supers * 8;
    float d[16], dmin[16];
    if (importance) {
        const search_plan plan = {32, nmax, -0.9f, 0.05f, 36, 0};
        find_sigma2(b, supers, x, 2.0f);
        find_scales_and_minima(b, &plan, subs, BY_IMPORTANCE, x, importance);
        positive_scales(b, 8, supers, 63, b->scale, b->ls, d);
        positive_scales(b, 8, supers, 63, b->min, b->lm, dmin);
    } else {
        if (nmax == 15) {
            const search_plan plan = {32, 15, -1.0f, 0.1f, 20, 0};
            find_scales_and_minima(b, &plan, subs, BY_SIZE_AND_MEAN, x, NULL);
        } else {
            const search_plan plan = {32, 31, -0.5f, 0.1f, 15, 0};
            find_scales_and_minima(b, &plan, subs, BY_SIZE_AND_MEAN, x, NULL);
        }
        for (int s = 0; s < supers; s++) {
            float scale = largest_scale(b->scale + 8 * s, 8), min = largest_scale(b->min + 8 * s, 8);
            float inv_scale = scale > 0 ? 63.0f / scale : 0.0f, inv_min = min > 0 ? 63.0f / min : 0.0f;
            for (int t = 8 * s; t < 8 * s + 8; t++) {
                uint8_t ls = (uint8_t)nearest_int(inv_scale * b->scale[t]), lm = (uint8_t)nearest_int(inv_min * b->min[t]);
                b->ls[t] = ls < 63 ? ls : 63;
                b->lm[t] = lm < 63 ? lm : 63;
            }
            d[s] = scale / 63.0f;
            dmin[s] = min / 63.0f;
        }
    }
    for (int s = 0; s < supers; s++) {
        halves[2 * s] = f16_from(d[s]);
        halves[2 * s + 1] = f16_from(dmin[s]);
        for (int t = 8 * s; t < 8 * s + 8; t++) {
            b->d[t] = f32_from(halves[2 * s]) * b->ls[t];
            b->dm[t] = f32_from(halves[2 * s + 1]) * b->lm[t];
        }
    }
    round_weights(b, 32, subs, 0.0f, (float)nmax, 0.0f, NULL);
}

/* The 6-bit scales and minima of 8 sub-blocks (what `get_scale_min_k4` reads). */
INLINE void pack_scales_k4(const int *ls, const int *lm, uint8_t *out)
{
    for (int j = 0; j < 4; j++) {
        out[j] = (uint8_t)(ls[j] | (ls[j + 4] >> 4) << 6);
        out[j + 4] = (uint8_t)(lm[j] | (lm[j + 4] >> 4) << 6);
        out[j + 8] = (uint8_t)((ls[j + 4] & 15) | (lm[j + 4] & 15) << 4);
    }
}

static void encode_q4_K(batch *b, int supers, const float *x, const float *importance, void *out)
{
    uint16_t halves[32];
    encode_k4(b, supers, x, importance, 15, halves);
    for (int s = 0; s < supers; s++) {
        block_q4_K *y = (block_q4_K *)out + s;
        const uint8_t *L = b->L + s * SUPER;
        y->d = halves[2 * s];
        y->dmin = halves[2 * s + 1];
        pack_scales_k4(b->ls + 8 * s, b->lm + 8 * s, y->scales);
        for (int j = 0; j < 4; j++)
            for (int l = 0; l < 32; l++)
                y->qs[32 * j + l] = (uint8_t)(L[64 * j + l] | L[64 * j + 32 + l] << 4);
    }
}

static void encode_q5_K(batch *b, int supers, const float *x, const float *importance, void *out)
{
    uint16_t halves[32];
    encode_k4(b, supers, x, importance, 31, halves);
    for (int s = 0; s < supers; s++) {
        block_q5_K *y = (block_q5_K *)out + s;
        const uint8_t *L = b->L + s * SUPER;
        y->d = halves[2 * s];
        y->dmin = halves[2 * s + 1];
        pack_scales_k4(b->ls + 8 * s, b->lm + 8 * s, y->scales);
        for (int l = 0; l < 32; l++) {
            uint8_t high = 0;
            for (int j = 0; j < 8; j++)
                high |= (uint8_t)(L[32 * j + l] >> 4 << j);
            y->qh[l] = high;
        }
        for (int j = 0; j < 4; j++)
            for (int l = 0; l < 32; l++)
                y->qs[32 * j + l] = (uint8_t)((L[64 * j + l] & 15) | (L[64 * j + 32 + l] & 15) << 4);
    }
}

/* Four weights a byte, which lie 32 apart. */
INLINE void pack_pairs(const uint8_t *L, uint8_t *qs)
{
    for (int h = 0; h < 2; h++)
        for (int l = 0; l < 32; l++) {
            const uint8_t *at = L + 128 * h + l;
            qs[32 * h + l] = (uint8_t)((at[0] & 3) | (at[32] & 3) << 2 | (at[64] & 3) << 4 | (at[96] & 3) << 6);
        }
}

/* `quantize_row_q2_K_ref` and `quantize_row_q2_K_impl` */
static void encode_q2_K(batch *b, int supers, const float *x, const float *importance, void *out)
{
    const int subs = supers * 16;
    float d[16], dmin[16];
    if (importance) {
        const search_plan plan = {16, 3, -0.9f, 0.05f, 36, 0};
        find_sigma2(b, supers, x, 1.0f);
        find_scales_and_minima(b, &plan, subs, BY_IMPORTANCE, x, importance);
        positive_scales(b, 16, supers, 15, b->scale, b->ls, d);
        positive_scales(b, 16, supers, 15, b->min, b->lm, dmin);
    } else {
        const search_plan plan = {16, 3, -0.5f, 0.1f, 15, 1};
        find_scales_and_minima(b, &plan, subs, BY_SIZE, x, NULL);
        for (int s = 0; s < supers; s++) {
            float scale = largest_scale(b->scale + 16 * s, 16), min = largest_scale(b->min + 16 * s, 16);
            float inv_scale = scale > 0 ? 15.0f / scale : 0.0f, inv_min = min > 0 ? 15.0f / min : 0.0f;
            for (int t = 16 * s; t < 16 * s + 16; t++) {
                /* The reference writes both into one byte: what is beyond four bits of a scale reaches the minimum. */
                uint8_t both = scale > 0 ? (uint8_t)nearest_int(inv_scale * b->scale[t]) : 0;
                if (min > 0)
                    both |= (uint8_t)(nearest_int(inv_min * b->min[t]) << 4);
                b->ls[t] = both & 15;
                b->lm[t] = both >> 4;
            }
            d[s] = scale > 0 ? scale / 15.0f : 0.0f;
            dmin[s] = min > 0 ? min / 15.0f : 0.0f;
        }
    }
    for (int s = 0; s < supers; s++) {
        block_q2_K *y = (block_q2_K *)out + s;
        y->d = f16_from(d[s]);
        y->dmin = f16_from(dmin[s]);
        for (int j = 0; j < 16; j++) {
            int t = 16 * s + j;
            y->scales[j] = (uint8_t)(b->ls[t] | b->lm[t] << 4);
            b->d[t] = f32_from(y->d) * b->ls[t];
            b->dm[t] = f32_from(y->dmin) * b->lm[t];
        }
    }
    round_weights(b, 16, subs, 0.0f, 3.0f, 0.0f, NULL);
    for (int s = 0; s < supers; s++)
        pack_pairs(b->L + s * SUPER, ((block_q2_K *)out + s)->qs);
}

/* Stage one of Q6_K, and of Q3_K with an importance matrix. */
INLINE void find_scales(batch *b, int nmax, int subs, const float *x, const float *importance, int weigh_by_size)
{
    for (int first = 0; first < subs; first += LANES) {
        const float *w = NULL;
        to_lanes(x + first * 16, 16, b->x + first * 16);
        if (importance && weigh_by_size)
            weigh(b, BY_IMPORTANCE, 16, first, 16, importance);
        else if (importance)
            to_lanes(importance + first * 16, 16, b->w + first * 16);
        if (importance)
            w = b->w + first * 16;
        found f = search_symmetric(16, nmax, b->x + first * 16, w);
        store_found(b, &f, first, (float)nmax);
    }
}

/* `quantize_row_q3_K_ref` and `quantize_row_q3_K_impl` */
static void encode_q3_K(batch *b, int supers, const float *x, const float *importance, void *out)
{
    const int subs = supers * 16;
    float d[16];
    memset(b->dm, 0, sizeof b->dm);
    if (importance) {
        float scales[16 * LANES], w[16 * LANES];
        find_sigma2(b, supers, x, 2.0f);
        find_scales(b, 4, subs, x, importance, 1);
        for (int first = 0; first < supers; first += LANES) {
            to_lanes(b->scale + first * 16, 16, scales);
            to_lanes(b->sum_w + first * 16, 16, w);
            found f = search_symmetric(16, 32, scales, w);
            f_store(d + first, f.scale);
            vf base = f_choose(f.dead, f_zero(), f_set(32.0f)), inverse = f_choose(f.dead, f_zero(), f.inverse);
            vm odd = m_none();
            for (int j = 0; j < 16; j++) {
                float l[LANES];
                vf v = f_load(scales + j * LANES);
                odd = m_or(odd, beyond_nearest(inverse * v));
                f_store(l, nearest_within(inverse * v, f_set(-32.0f), f_set(31.0f)) + base);
                for (int lane = 0; lane < LANES; lane++)
                    b->ls[(first + lane) * 16 + j] = (int)l[lane];
            }
            mark_hard(b, odd, first, 1);
        }
    } else {
        for (int first = 0; first < subs; first += LANES) {
            to_lanes(x + first * 16, 16, b->x + first * 16);
            found f = search_by_moves(16, 4, b->x + first * 16, b->w + first * 16);
            store_found(b, &f, first, 4.0f);
            mark_hard(b, f.hard, first, 16);
            if (m_bits(f.dead))
                for (int i = 0; i < 16; i++) {
                    float *L = b->w + (first + 0) * 16 + i * LANES;
                    f_store(L, f_choose(f.dead, f_zero(), f_load(L)));
                }
        }
        for (int s = 0; s < supers; s++) {
            float largest = 0, size = 0;
            for (int t = 16 * s; t < 16 * s + 16; t++) {
                float a = b->scale[t] < 0 ? -b->scale[t] : b->scale[t];
                if (a > size) {
                    size = a;
                    largest = b->scale[t];
                }
            }
            float inverse = -32.0f / largest;
            for (int t = 16 * s; t < 16 * s + 16; t++) {
                int l = largest != 0 ? (int8_t)nearest_int(inverse * b->scale[t]) : -32; /* all bits 0 for a scale of 0 */
                b->ls[t] = (l < -32 ? -32 : l > 31 ? 31 : l) + 32;
            }
            d[s] = largest != 0 ? 1 / inverse : 0.0f;
        }
    }
    for (int s = 0; s < supers; s++) {
        block_q3_K *y = (block_q3_K *)out + s;
        y->d = f16_from(d[s]);
        memset(y->scales, 0, sizeof y->scales);
        for (int j = 0; j < 16; j++) {
            int l = b->ls[16 * s + j];
            y->scales[j % 8] |= (uint8_t)((l & 15) << (j < 8 ? 0 : 4));
            y->scales[8 + j % 4] |= (uint8_t)(l >> 4 << 2 * (j / 4));
            b->d[16 * s + j] = f32_from(y->d) * (l - 32);
        }
    }
    round_weights(b, 16, subs, -4.0f, 3.0f, 4.0f, importance ? NULL : b->w);
    for (int s = 0; s < supers; s++) {
        block_q3_K *y = (block_q3_K *)out + s;
        const uint8_t *L = b->L + s * SUPER;
        for (int l = 0; l < 32; l++) {
            uint8_t high = 0;
            for (int j = 0; j < 8; j++)
                high |= (uint8_t)(L[32 * j + l] >> 2 << j);
            y->hmask[l] = high;
        }
        pack_pairs(L, y->qs);
    }
}

/* `quantize_row_q6_K_ref` and `quantize_row_q6_K_impl` */
static void encode_q6_K(batch *b, int supers, const float *x, const float *importance, void *out)
{
    const int subs = supers * 16;
    memset(b->dm, 0, sizeof b->dm);
    find_scales(b, 32, subs, x, importance, 0);
    unsigned empty = 0;
    for (int s = 0; s < supers; s++) {
        block_q6_K *y = (block_q6_K *)out + s;
        float largest = 0, size = 0;
        for (int t = 16 * s; t < 16 * s + 16; t++) {
            float a = b->scale[t] < 0 ? -b->scale[t] : b->scale[t];
            if (a > size) {
                size = a;
                largest = b->scale[t];
            }
        }
        if (size < GROUP_MAX_EPS)
            empty |= 1u << s;
        float inverse = -128.0f / largest;
        y->d = f16_from(1 / inverse);
        for (int j = 0; j < 16; j++) {
            int l = nearest_int(inverse * b->scale[16 * s + j]);
            y->scales[j] = (int8_t)(l < 127 ? l : 127);
            b->d[16 * s + j] = f32_from(y->d) * y->scales[j];
        }
    }
    round_weights(b, 16, subs, -32.0f, 31.0f, 32.0f, NULL);
    for (int s = 0; s < supers; s++) {
        block_q6_K *y = (block_q6_K *)out + s;
        const uint8_t *L = b->L + s * SUPER;
        for (int h = 0; h < 2; h++, L += 128)
            for (int l = 0; l < 32; l++) {
                y->ql[64 * h + l] = (uint8_t)((L[l] & 15) | (L[l + 64] & 15) << 4);
                y->ql[64 * h + 32 + l] = (uint8_t)((L[l + 32] & 15) | (L[l + 96] & 15) << 4);
                y->qh[32 * h + l] = (uint8_t)(L[l] >> 4 | L[l + 32] >> 4 << 2 | L[l + 64] >> 4 << 4 | L[l + 96] >> 4 << 6);
            }
        if (empty >> s & 1)
            memset(y, 0, sizeof *y);
    }
    b->hard &= ~empty;
}

#endif
