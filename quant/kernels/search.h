/* The searches for the best scale of a sub-block, in lanes: one sub-block per lane, positions as vectors.
 *
 * Each function states which of ggml-quants.c it computes; every lane keeps that function's order of float operations, so the
 * results are equal bit for bit. A branch of the reference is a mask here. Integers are kept as floats, which is exact. Where the
 * reference would round a number beyond 2^22 (its nearest_int then gives no nearest integer), the lane is reported as `hard`.
 */
#ifndef TINYQ_SEARCH_H
#define TINYQ_SEARCH_H

#include "lanes.h"

#define GROUP_MAX_EPS 1e-15f
#define NEAREST_LIMIT 4194303.0f

INLINE vf f_zero(void) { return f_set(0.0f); }
INLINE vm f_gt(vf a, vf b) { return f_lt(b, a); }
/* lanes in which nearest_int(v) is not the nearest integer */
INLINE vm beyond_nearest(vf v) { return m_andnot(f_eq(f_zero(), f_zero()), f_lt(f_abs(v), f_set(NEAREST_LIMIT))); }
/* nearest_int within low and high, which are integers */
INLINE vf nearest_within(vf v, vf low, vf high) { return f_round(f_min(f_max(v, low), high)); }

/* The result of a search. L is nearest(inverse * (x - shift)) within its bounds; it is 0 in dead lanes. */
typedef struct {
    vf scale, min;     /* the_min of the reference is -min */
    vf inverse, shift;
    vm dead, hard;
} found;

#define GROUPS 2

/* The sums of one step of search_scale_min; the integers go to aux. */
INLINE void scale_min_sums(int n, const float *x, const float *w, const vf *inverse, const found *at, float (*aux)[32 * LANES],
                           int bound_low, int bound_high, vf top, vf *sum_l, vf *sum_l2, vf *sum_xl)
{
    const vf zero = f_zero();
    vf s1[GROUPS], s2[GROUPS], s3[GROUPS];
    for (int g = 0; g < GROUPS; g++)
        s1[g] = s2[g] = s3[g] = zero;
    for (int i = 0; i < n; i++)
        for (int g = 0; g < GROUPS; g++) {
            vf v = f_load(x + (g * n + i) * LANES), wi = f_load(w + (g * n + i) * LANES);
            vf l = inverse[g] * (v - at[g].min);
            if (bound_low)
                l = f_max(l, zero);
            if (bound_high)
                l = f_min(l, top);
            l = f_round(l);
            f_store(aux[g] + i * LANES, l);
            vf wl = wi * l;
            s1[g] = s1[g] + wl;
            s2[g] = s2[g] + wl * l;
            s3[g] = s3[g] + wl * v;
        }
    for (int g = 0; g < GROUPS; g++) {
        sum_l[g] = s1[g];
        sum_l2[g] = s2[g];
        sum_xl[g] = s3[g];
    }
}

/* `make_qkx2_quants` and, with weights, `make_qkx3_quants`: scale and minimum of n weights, from 0 to nmax.
 * x and w are n vectors for each of GROUPS groups of lanes: interleaved, one's divisions overlap with the other's sums. */
INLINE void search_scale_min(int n, float nmax, const float *x, const float *w, float rmin, float rdelta, int nstep, int use_mad,
                             found *out)
{
    vf lowest[GROUPS], highest[GROUPS], sum_w[GROUPS], sum_x[GROUPS], best[GROUPS];
    float aux[GROUPS][32 * LANES];
    const vf top = f_set(nmax), zero = f_zero();
    for (int g = 0; g < GROUPS; g++) {
        const float *xs = x + g * n * LANES, *ws = w + g * n * LANES;
        vf low = f_load(xs), high = low, weight = f_load(ws), total = weight * low;
        for (int i = 1; i < n; i++) {
            vf v = f_load(xs + i * LANES), wi = f_load(ws + i * LANES);
            low = f_min(v, low);
            high = f_max(v, high);
            weight = weight + wi;
            total = total + wi * v;
        }
        vf min = f_choose(f_gt(low, zero), zero, low);
        lowest[g] = low;
        highest[g] = high;
        sum_w[g] = weight;
        sum_x[g] = total;
        vf inverse = top / (high - min), scale = f_set(1.0f) / inverse, error = zero;
        out[g].dead = f_eq(high, min);
        out[g].hard = m_andnot(beyond_nearest(inverse * (high - min)), out[g].dead);
        for (int i = 0; i < n; i++) {
            vf v = f_load(xs + i * LANES);
            vf l = nearest_within(inverse * (v - min), zero, top);
            vf diff = scale * l + min - v;
            diff = use_mad ? f_abs(diff) : diff * diff;
            error = error + f_load(ws + i * LANES) * diff;
        }
        best[g] = error;
        out[g].scale = f_choose(out[g].dead, zero, scale);
        out[g].min = out[g].shift = min;
        out[g].inverse = inverse;
    }
    for (int step = 0; step <= nstep; step++) {
        const vf steps = f_set(rmin + rdelta * step + nmax);
        vf inverse[GROUPS], sum_l[GROUPS], sum_l2[GROUPS], sum_xl[GROUPS], this_scale[GROUPS], this_min[GROUPS], error[GROUPS];
        vm sound[GROUPS];
        vm low = m_none(), high = m_none();
        for (int g = 0; g < GROUPS; g++) {
            vf min = out[g].min;
            inverse[g] = steps / (highest[g] - min);
            vf first = inverse[g] * (lowest[g] - min), last = inverse[g] * (highest[g] - min); /* all others lie between */
            vm alive = m_andnot(f_eq(zero, zero), out[g].dead);
            low = m_or(low, m_and(alive, m_or(f_lt(first, f_set(-0.5f)), f_lt(last, f_set(-0.5f)))));
            high = m_or(high, m_and(alive, m_or(f_ge(first, top + f_set(0.5f)), f_ge(last, top + f_set(0.5f)))));
            vm far = m_or(beyond_nearest(first), beyond_nearest(last));
            out[g].hard = m_or(out[g].hard, m_andnot(far, out[g].dead));
            error[g] = zero;
        }
        /* nearest(v) is at most nmax for v below nmax + 0.5, and at least 0 from -0.5 on. Where no lane needs a bound, it is left
         * out. */
        const int bounds = (m_bits(high) != 0) | 2 * (m_bits(low) != 0);
        switch (bounds) {
        case 0: scale_min_sums(n, x, w, inverse, out, aux, 0, 0, top, sum_l, sum_l2, sum_xl); break;
        case 1: scale_min_sums(n, x, w, inverse, out, aux, 0, 1, top, sum_l, sum_l2, sum_xl); break;
        case 2: scale_min_sums(n, x, w, inverse, out, aux, 1, 0, top, sum_l, sum_l2, sum_xl); break;
        default: scale_min_sums(n, x, w, inverse, out, aux, 1, 1, top, sum_l, sum_l2, sum_xl);
        }
        for (int g = 0; g < GROUPS; g++) {
            vf det = sum_w[g] * sum_l2[g] - sum_l[g] * sum_l[g];
            sound[g] = m_andnot(f_gt(det, zero), out[g].dead);
            vf scale = (sum_w[g] * sum_xl[g] - sum_x[g] * sum_l[g]) / det;
            vf min = (sum_l2[g] * sum_x[g] - sum_l[g] * sum_xl[g]) / det;
            vm above = f_gt(min, zero);
            this_min[g] = f_choose(above, zero, min);
            this_scale[g] = f_choose(above, sum_xl[g] / sum_l2[g], scale);
        }
        for (int i = 0; i < n; i++)
            for (int g = 0; g < GROUPS; g++) {
                vf diff = this_scale[g] * f_load(aux[g] + i * LANES) + this_min[g] - f_load(x + (g * n + i) * LANES);
                diff = use_mad ? f_abs(diff) : diff * diff;
                error[g] = error[g] + f_load(w + (g * n + i) * LANES) * diff;
            }
        for (int g = 0; g < GROUPS; g++) {
            vm better = m_and(sound[g], f_lt(error[g], best[g]));
            out[g].inverse = f_choose(better, inverse[g], out[g].inverse);
            out[g].shift = f_choose(better, out[g].min, out[g].shift);
            best[g] = f_choose(better, error[g], best[g]);
            out[g].scale = f_choose(better, this_scale[g], out[g].scale);
            out[g].min = f_choose(better, this_min[g], out[g].min);
        }
    }
}

/* The number of largest magnitude (the first of several), and its magnitude. */
INLINE vf largest_of(int n, const float *x, vf *size)
{
    vf largest = f_zero(), most = f_zero();
    for (int i = 0; i < n; i++) {
        vf v = f_load(x + i * LANES), a = f_abs(v);
        vm more = f_gt(a, most);
        most = f_choose(more, a, most);
        largest = f_choose(more, v, largest);
    }
    *size = most;
    return largest;
}

/* Sums of `count` steps at once, for inverse scales that do not depend on one another. */
INLINE void symmetric_sums(int n, int count, vf low, vf high, int clamp_low, const float *x, const float *w, const vf *inverse,
                           vf *sum_lx, vf *sum_l2)
{
    for (int s = 0; s < count; s++)
        sum_lx[s] = sum_l2[s] = f_zero();
    for (int i = 0; i < n; i++) {
        vf v = f_load(x + i * LANES), wi = w ? f_load(w + i * LANES) : v * v, wx = wi * v;
        for (int s = 0; s < count; s++) {
            vf l = f_min(inverse[s] * v, high);
            l = f_round(clamp_low ? f_max(l, low) : l);
            sum_lx[s] = sum_lx[s] + wx * l;
            sum_l2[s] = sum_l2[s] + wi * l * l;
        }
    }
}

/* `make_qx_quants` with rmse_type 1: the scale of n weights, from -nmax to nmax - 1, weighted by w, or by x * x without.
 * In dead lanes the reference's L is 0, which is -nmax; inverse and shift give L without nmax added. */
INLINE found search_symmetric(int n, int nmax, const float *x, const float *w)
{
    enum { AT_ONCE = 3 };
    vf amax, max = largest_of(n, x, &amax);
    found out;
    out.dead = f_lt(amax, f_set(GROUP_MAX_EPS));
    out.hard = m_none();
    out.shift = out.min = f_zero();
    const vf low = f_set((float)-nmax), high = f_set((float)(nmax - 1)), zero = f_zero();
    vf sum_lx[AT_ONCE], sum_l2[AT_ONCE], inverse[AT_ONCE];
    inverse[0] = low / max;
    symmetric_sums(n, 1, low, high, 0, x, w, inverse, sum_lx, sum_l2);
    out.inverse = inverse[0];
    /* suml2 ? sumlx / suml2 : 0 */
    vf scale = f_choose(f_eq(sum_l2[0], zero), zero, sum_lx[0] / sum_l2[0]);
    vf best = scale * sum_lx[0];
    /* The weight of largest magnitude is rounded to -(nmax + 0.1 * step): below -nmax only from step 5 on. */
    for (int first = -9; first <= 9; first += AT_ONCE) {
        if (first == 0)
            first = 1;
        for (int s = 0; s < AT_ONCE; s++)
            inverse[s] = f_set(-(nmax + 0.1f * (first + s))) / max;
        symmetric_sums(n, AT_ONCE, low, high, first + AT_ONCE > 5, x, w, inverse, sum_lx, sum_l2);
        for (int s = 0; s < AT_ONCE; s++) {
            vm better = m_and(f_gt(sum_l2[s], zero), f_gt(sum_lx[s] * sum_lx[s], best * sum_l2[s]));
            scale = f_choose(better, sum_lx[s] / sum_l2[s], scale);
            best = f_choose(better, scale * sum_lx[s], best);
            out.inverse = f_choose(better, inverse[s], out.inverse);
        }
    }
    out.scale = f_choose(out.dead, zero, scale);
    return out;
}

/* `make_q3_quants` with do_rmse: as search_symmetric, but each weight is moved by itself. L (n vectors) without nmax. */
INLINE found search_by_moves(int n, int nmax, const float *x, float *L)
{
    vf amax, max = largest_of(n, x, &amax);
    found out;
    out.dead = f_lt(amax, f_set(GROUP_MAX_EPS));
    out.hard = m_none();
    out.shift = out.min = f_zero();
    const vf low = f_set((float)-nmax), high = f_set((float)(nmax - 1)), zero = f_zero();
    out.inverse = low / max;
    vf sum_lx = zero, sum_l2 = zero;
    for (int i = 0; i < n; i++) {
        vf v = f_load(x + i * LANES), w = v * v;
        vf l = nearest_within(out.inverse * v, low, high);
        f_store(L + i * LANES, l);
        sum_lx = sum_lx + w * v * l;
        sum_l2 = sum_l2 + w * l * l;
    }
    for (int attempt = 0; attempt < 5; attempt++) {
        vm changed = m_none();
        for (int i = 0; i < n; i++) {
            vf v = f_load(x + i * LANES), l = f_load(L + i * LANES), w = v * v;
            vf slx = sum_lx - w * v * l, sl2 = sum_l2 - w * l * l;
            vm open = m_andnot(f_gt(slx, zero), out.dead);
            vf wanted = v * sl2 / slx;
            out.hard = m_or(out.hard, m_and(open, beyond_nearest(wanted)));
            vf next = nearest_within(wanted, low, high);
            slx = slx + w * v * next;
            sl2 = sl2 + w * next * next;
            vm better = m_and(f_gt(sl2, zero), f_gt(slx * slx * sum_l2, sum_lx * sum_lx * sl2));
            better = m_andnot(m_and(open, better), f_eq(next, l));
            f_store(L + i * LANES, f_choose(better, next, l));
            sum_lx = f_choose(better, slx, sum_lx);
            sum_l2 = f_choose(better, sl2, sum_l2);
            changed = m_or(changed, better);
        }
        if (!m_bits(changed))
            break;
    }
    /* suml2 > 0 ? sumlx / suml2 : 0 */
    out.scale = f_choose(m_andnot(f_gt(sum_l2, zero), out.dead), sum_lx / sum_l2, zero);
    return out;
}

/* `make_qp_quants`: the scale of n numbers, none negative, from 0 to nmax, weighted by w. L has n vectors. */
INLINE found search_positive(int n, int nmax, const float *x, const float *w, float *L)
{
    const vf top = f_set((float)nmax), zero = f_zero(), one = f_set(1.0f);
    vf max = zero;
    found out;
    out.hard = m_none();
    for (int i = 0; i < n; i++) {
        vf v = f_load(x + i * LANES);
        max = f_max(max, v);
        /* A negative L wraps around in the reference; NaN and infinity are no scales. */
        vm plain = m_and(f_ge(v, zero), f_lt(v, f_set(3e38f)));
        out.hard = m_or(out.hard, m_andnot(f_eq(zero, zero), plain));
    }
    out.dead = f_lt(max, f_set(GROUP_MAX_EPS));
    out.shift = out.min = zero;
    vf inverse = top / max, best = zero;
    for (int step = 0; step <= 8; step++) { /* the reference's 0, then its -4 to 4 */
        int is = step == 0 ? 0 : step <= 4 ? step - 5 : step - 4;
        vf trial = is == 0 ? inverse : f_set(0.1f * is + nmax) / max, scale = one / trial, error = zero;
        for (int i = 0; i < n; i++) {
            vf v = f_load(x + i * LANES);
            vf l = nearest_within(trial * v, zero, top);
            vf diff = v - scale * l;
            error = error + f_load(w + i * LANES) * diff * diff;
        }
        vm better = is == 0 ? f_eq(zero, zero) : f_lt(error, best);
        best = f_choose(better, error, best);
        inverse = f_choose(better, trial, inverse);
    }
    vf sum_lx = zero, sum_l2 = zero;
    for (int i = 0; i < n; i++) {
        vf v = f_load(x + i * LANES), wi = f_load(w + i * LANES);
        vf l = nearest_within(inverse * v, zero, top);
        f_store(L + i * LANES, l);
        sum_lx = sum_lx + wi * v * l;
        sum_l2 = sum_l2 + wi * l * l;
    }
    for (int attempt = 0; attempt < 5; attempt++) {
        vm changed = m_none();
        for (int i = 0; i < n; i++) {
            vf v = f_load(x + i * LANES), l = f_load(L + i * LANES), wi = f_load(w + i * LANES);
            vf slx = sum_lx - wi * v * l, sl2 = sum_l2 - wi * l * l;
            vm open = m_andnot(m_and(f_gt(slx, zero), f_gt(sl2, zero)), out.dead);
            vf wanted = v * sl2 / slx;
            out.hard = m_or(out.hard, m_and(open, beyond_nearest(wanted)));
            vf next = nearest_within(wanted, zero, top);
            slx = slx + wi * v * next;
            sl2 = sl2 + wi * next * next;
            vm better = m_andnot(m_and(open, f_gt(slx * slx * sum_l2, sum_lx * sum_lx * sl2)), f_eq(next, l));
            f_store(L + i * LANES, f_choose(better, next, l));
            sum_lx = f_choose(better, slx, sum_lx);
            sum_l2 = f_choose(better, sl2, sum_l2);
            changed = m_or(changed, better);
        }
        if (!m_bits(changed))
            break;
    }
    for (int i = 0; i < n; i++)
        f_store(L + i * LANES, f_choose(out.dead, zero, f_load(L + i * LANES)));
    out.scale = f_choose(m_andnot(f_gt(sum_l2, zero), out.dead), sum_lx / sum_l2, zero);
    out.inverse = inverse;
    return out;
}

#endif
