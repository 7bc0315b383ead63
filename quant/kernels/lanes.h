/* The lane abstraction: vectors of LANES float32 or int32 numbers, one sub-block of weights per lane.
 *
 * A source file that includes it defines one of LANES_SSE2, LANES_AVX2, LANES_AVX512 and LANES_NEON. Addition, subtraction,
 * multiplication and division are the compiler's operators on vector types (GCC and Clang); everything else is named here. All
 * operations round as the scalar ones of IEEE 754 do, so a lane computes exactly what scalar code in the same order computes.
 */
#ifndef TINYQ_LANES_H
#define TINYQ_LANES_H

#if !defined(__GNUC__)
#error "the kernels need GCC or Clang"
#endif

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))

#if defined(LANES_AVX512)

#include <immintrin.h>
#define LANES 16
typedef float vf __attribute__((vector_size(64)));
typedef int vi __attribute__((vector_size(64)));
typedef __mmask16 vm; /* the lanes for which a comparison holds */

INLINE vf f_set(float x) { return _mm512_set1_ps(x); }
INLINE vf f_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void f_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
/* a < b ? a : b, and a > b ? a : b: the second operand for zeros of either sign */
INLINE vf f_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf f_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf f_abs(vf a) { return _mm512_abs_ps(a); }
INLINE vf f_sqrt(vf a) { return _mm512_sqrt_ps(a); }
INLINE vf f_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf f_trunc(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
INLINE vm f_lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE vm f_ge(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
INLINE vm f_eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE vm m_and(vm a, vm b) { return a & b; }
INLINE vm m_or(vm a, vm b) { return a | b; }
INLINE vm m_andnot(vm a, vm b) { return (vm)(a & ~b); } /* a and not b */
INLINE vm m_none(void) { return 0; }
INLINE unsigned m_bits(vm a) { return a; }
INLINE vf f_choose(vm m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
INLINE vi f_to_int(vf a) { return (vi)_mm512_cvttps_epi32(a); } /* truncates; 0x80000000 out of range */
INLINE vi i_set(int x) { return (vi)_mm512_set1_epi32(x); }
INLINE vi i_load(const void *p) { return (vi)_mm512_loadu_si512(p); }
INLINE void i_store(void *p, vi v) { _mm512_storeu_si512(p, (__m512i)v); }
INLINE vi i_max_unsigned(vi a, vi b) { return (vi)_mm512_max_epu32((__m512i)a, (__m512i)b); }
INLINE void i_store_bytes(void *p, vi v) { _mm_storeu_si128(p, _mm512_cvtepi32_epi8((__m512i)v)); }
INLINE float f_largest(vf v) { return _mm512_reduce_max_ps(v); }
INLINE float f_least(vf v) { return _mm512_reduce_min_ps(v); }
INLINE vf f_from_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf f_from_bf16(const uint16_t *p)
{
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}

#elif defined(LANES_AVX2)

#include <immintrin.h>
#define LANES 8
typedef float vf __attribute__((vector_size(32)));
typedef int vi __attribute__((vector_size(32)));
typedef __m256 vm;

INLINE vf f_set(float x) { return _mm256_set1_ps(x); }
INLINE vf f_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void f_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
INLINE vf f_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf f_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf f_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE vf f_sqrt(vf a) { return _mm256_sqrt_ps(a); }
INLINE vf f_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf f_trunc(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
INLINE vm f_lt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
INLINE vm f_ge(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
INLINE vm f_eq(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
INLINE vm m_and(vm a, vm b) { return _mm256_and_ps(a, b); }
INLINE vm m_or(vm a, vm b) { return _mm256_or_ps(a, b); }
INLINE vm m_andnot(vm a, vm b) { return _mm256_andnot_ps(b, a); }
INLINE vm m_none(void) { return _mm256_setzero_ps(); }
INLINE unsigned m_bits(vm a) { return (unsigned)_mm256_movemask_ps(a); }
INLINE vf f_choose(vm m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, m); }
INLINE vi f_to_int(vf a) { return (vi)_mm256_cvttps_epi32(a); }
INLINE vi i_set(int x) { return (vi)_mm256_set1_epi32(x); }
INLINE vi i_load(const void *p) { return (vi)_mm256_loadu_si256(p); }
INLINE void i_store(void *p, vi v) { _mm256_storeu_si256(p, (__m256i)v); }
INLINE vi i_max_unsigned(vi a, vi b) { return (vi)_mm256_max_epu32((__m256i)a, (__m256i)b); }
INLINE void i_store_bytes(void *p, vi v)
{
    __m256i low = _mm256_and_si256((__m256i)v, _mm256_set1_epi32(255));
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(p, _mm_packus_epi16(words, words));
}
INLINE float f_largest(vf v)
{
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps(a, a, 1)));
}
INLINE float f_least(vf v)
{
    __m128 a = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_min_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_min_ss(a, _mm_shuffle_ps(a, a, 1)));
}
INLINE vf f_from_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vf f_from_bf16(const uint16_t *p)
{
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}

#elif defined(LANES_SSE2)

#include <emmintrin.h>
#define LANES 4
typedef float vf __attribute__((vector_size(16)));
typedef int vi __attribute__((vector_size(16)));
typedef __m128 vm;

INLINE vf f_set(float x) { return _mm_set1_ps(x); }
INLINE vf f_load(const float *p) { return _mm_loadu_ps(p); }
INLINE void f_store(float *p, vf v) { _mm_storeu_ps(p, v); }
INLINE vf f_min(vf a, vf b) { return _mm_min_ps(a, b); }
INLINE vf f_max(vf a, vf b) { return _mm_max_ps(a, b); }
INLINE vf f_abs(vf a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
INLINE vf f_sqrt(vf a) { return _mm_sqrt_ps(a); }
/* exact for magnitudes below 2^22 */
INLINE vf f_round(vf a) { return (a + _mm_set1_ps(12582912.0f)) - _mm_set1_ps(12582912.0f); }
INLINE vf f_trunc(vf a) { return _mm_cvtepi32_ps(_mm_cvttps_epi32(a)); }
INLINE vm f_lt(vf a, vf b) { return _mm_cmplt_ps(a, b); }
INLINE vm f_ge(vf a, vf b) { return _mm_cmpge_ps(a, b); }
INLINE vm f_eq(vf a, vf b) { return _mm_cmpeq_ps(a, b); }
INLINE vm m_and(vm a, vm b) { return _mm_and_ps(a, b); }
INLINE vm m_or(vm a, vm b) { return _mm_or_ps(a, b); }
INLINE vm m_andnot(vm a, vm b) { return _mm_andnot_ps(b, a); }
INLINE vm m_none(void) { return _mm_setzero_ps(); }
INLINE unsigned m_bits(vm a) { return (unsigned)_mm_movemask_ps(a); }
INLINE vf f_choose(vm m, vf yes, vf no) { return _mm_or_ps(_mm_and_ps(m, yes), _mm_andnot_ps(m, no)); }
INLINE vi f_to_int(vf a) { return (vi)_mm_cvttps_epi32(a); }
INLINE vi i_set(int x) { return (vi)_mm_set1_epi32(x); }
INLINE vi i_load(const void *p) { return (vi)_mm_loadu_si128(p); }
INLINE void i_store(void *p, vi v) { _mm_storeu_si128(p, (__m128i)v); }
INLINE vi i_max_unsigned(vi a, vi b) /* of numbers below 2^31 */
{
    __m128i more = _mm_cmpgt_epi32((__m128i)a, (__m128i)b);
    return (vi)_mm_or_si128(_mm_and_si128(more, (__m128i)a), _mm_andnot_si128(more, (__m128i)b));
}
INLINE void i_store_bytes(void *p, vi v)
{
    __m128i words = _mm_packs_epi32(_mm_and_si128((__m128i)v, _mm_set1_epi32(255)), _mm_setzero_si128());
    int low = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    memcpy(p, &low, 4);
}
INLINE float f_largest(vf v)
{
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}
INLINE float f_least(vf v)
{
    v = _mm_min_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_min_ss(v, _mm_shuffle_ps(v, v, 1)));
}
INLINE vf f_from_bf16(const uint16_t *p)
{
    return (vf)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i *)p));
}
INLINE vf f_from_f16(const uint16_t *p)
{
    __m128i half = _mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i *)p), _mm_setzero_si128());
    __m128i sign = _mm_slli_epi32(_mm_and_si128(half, _mm_set1_epi32(0x8000)), 16);
    __m128i rest = _mm_slli_epi32(_mm_and_si128(half, _mm_set1_epi32(0x7fff)), 13);
    /* 2^112 moves the exponent from F16's bias to float32's, subnormal numbers included. */
    __m128 value = _mm_mul_ps(_mm_castsi128_ps(rest), _mm_set1_ps(0x1p112f));
    __m128i special = _mm_cmpgt_epi32(rest, _mm_set1_epi32((0x7c00 << 13) - 1));
    __m128i bits = _mm_or_si128(_mm_castps_si128(value), _mm_and_si128(special, _mm_set1_epi32(0x7f800000)));
    return _mm_castsi128_ps(_mm_or_si128(bits, sign));
}

#elif defined(LANES_NEON)

#include <arm_neon.h>
#define LANES 4
typedef float32x4_t vf;
typedef int32x4_t vi;
typedef uint32x4_t vm;

INLINE vf f_set(float x) { return vdupq_n_f32(x); }
INLINE vf f_load(const float *p) { return vld1q_f32(p); }
INLINE void f_store(float *p, vf v) { vst1q_f32(p, v); }
INLINE vf f_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
INLINE vf f_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
INLINE vf f_abs(vf a) { return vabsq_f32(a); }
INLINE vf f_sqrt(vf a) { return vsqrtq_f32(a); }
INLINE vf f_round(vf a) { return vrndnq_f32(a); }
INLINE vf f_trunc(vf a) { return vrndq_f32(a); }
INLINE vm f_lt(vf a, vf b) { return vcltq_f32(a, b); }
INLINE vm f_ge(vf a, vf b) { return vcgeq_f32(a, b); }
INLINE vm f_eq(vf a, vf b) { return vceqq_f32(a, b); }
INLINE vm m_and(vm a, vm b) { return vandq_u32(a, b); }
INLINE vm m_or(vm a, vm b) { return vorrq_u32(a, b); }
INLINE vm m_andnot(vm a, vm b) { return vbicq_u32(a, b); }
INLINE vm m_none(void) { return vdupq_n_u32(0); }
INLINE unsigned m_bits(vm a)
{
    static const uint32_t places[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(a, vld1q_u32(places)));
}
INLINE vf f_choose(vm m, vf yes, vf no) { return vbslq_f32(m, yes, no); }
INLINE vi f_to_int(vf a) { return vcvtq_s32_f32(a); }
INLINE vi i_set(int x) { return vdupq_n_s32(x); }
INLINE vi i_load(const void *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
INLINE void i_store(void *p, vi v) { vst1q_u8(p, vreinterpretq_u8_s32(v)); }
INLINE vi i_max_unsigned(vi a, vi b)
{
    return vreinterpretq_s32_u32(vmaxq_u32(vreinterpretq_u32_s32(a), vreinterpretq_u32_s32(b)));
}
INLINE void i_store_bytes(void *p, vi v)
{
    uint16x4_t words = vmovn_u32(vreinterpretq_u32_s32(v));
    uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
    uint32_t low = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    memcpy(p, &low, 4);
}
INLINE float f_largest(vf v) { return vmaxvq_f32(v); }
INLINE float f_least(vf v) { return vminvq_f32(v); }
INLINE vf f_from_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE vf f_from_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }

#else
#error "define one of LANES_SSE2, LANES_AVX2, LANES_AVX512 and LANES_NEON"
#endif

/* Four rows of four numbers, transposed: out[i * out_step + j] = in[j * in_step + i]. */
#if defined(LANES_NEON)
INLINE void transpose4(const float *in, long in_step, float *out, long out_step)
{
    float32x4x2_t low = vtrnq_f32(vld1q_f32(in), vld1q_f32(in + in_step));
    float32x4x2_t high = vtrnq_f32(vld1q_f32(in + 2 * in_step), vld1q_f32(in + 3 * in_step));
    vst1q_f32(out, vcombine_f32(vget_low_f32(low.val[0]), vget_low_f32(high.val[0])));
    vst1q_f32(out + out_step, vcombine_f32(vget_low_f32(low.val[1]), vget_low_f32(high.val[1])));
    vst1q_f32(out + 2 * out_step, vcombine_f32(vget_high_f32(low.val[0]), vget_high_f32(high.val[0])));
    vst1q_f32(out + 3 * out_step, vcombine_f32(vget_high_f32(low.val[1]), vget_high_f32(high.val[1])));
}
#else
INLINE void transpose4(const float *in, long in_step, float *out, long out_step)
{
    __m128 a = _mm_loadu_ps(in), b = _mm_loadu_ps(in + in_step);
    __m128 c = _mm_loadu_ps(in + 2 * in_step), d = _mm_loadu_ps(in + 3 * in_step);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, a);
    _mm_storeu_ps(out + out_step, b);
    _mm_storeu_ps(out + 2 * out_step, c);
    _mm_storeu_ps(out + 3 * out_step, d);
}
#endif

/* LANES rows of n numbers (n a multiple of 4) into n vectors: out[i * LANES + lane] = in[lane * n + i]. */
INLINE void to_lanes(const float *in, int n, float *out)
{
    for (int lane = 0; lane < LANES; lane += 4)
        for (int i = 0; i < n; i += 4)
            transpose4(in + lane * n + i, n, out + i * LANES + lane, LANES);
}

/* Four vectors of integers from 0 to 255, which are positions i to i + 3 of LANES rows of n bytes, into those rows. */
INLINE void bytes_from_lanes(vi a, vi b, vi c, vi d, uint8_t *rows, int n, int i)
{
    uint32_t four[LANES];
    i_store(four, a | b << 8 | c << 16 | d << 24);
    for (int lane = 0; lane < LANES; lane++)
        memcpy(rows + lane * n + i, &four[lane], 4);
}

#endif
