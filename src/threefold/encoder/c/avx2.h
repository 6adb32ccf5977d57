// Vectors of 8 float32 (AVX2 and FMA), products in int8 by AVX-VNNI where it is. The same names as in avx512.h, which
// says what they mean.

#pragma once

#include "base.h"

typedef __m256 vec;
typedef __m256i ints;
#ifdef __AVXVNNI__
typedef int8_t whole;
#else
typedef int16_t whole; // without VNNI only products of 16 bits are exact
#endif

enum {
    LANES = 8,
    WIDE = 2, // there are 16 registers: 12 of sums
    TILE_ROWS = 6,
    ZERO_POINT = sizeof(whole) == 1 ? 128 : 0,
};

INLINE vec set(float x) {
    return _mm256_set1_ps(x);
}

INLINE vec load(const float *from) {
    return _mm256_loadu_ps(from);
}

INLINE void store(float *to, vec x) {
    _mm256_storeu_ps(to, x);
}

INLINE vec multiply_add(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}

INLINE vec magnitudes(vec x) {
    return _mm256_andnot_ps(set(-0.0f), x);
}

INLINE vec larger(vec a, vec b) {
    return _mm256_max_ps(a, b);
}

INLINE float sum_of(vec x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float largest_of(vec x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Lanes before `count`.
INLINE ints lanes_before(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE vec first_of(vec x, int count, float other) {
    return _mm256_blendv_ps(set(other), x, _mm256_castsi256_ps(lanes_before(count)));
}

INLINE vec if_negative(vec x, vec then, vec otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}

// The exponents of numbers that are not denormal, and none is infinite. In this order NaN stays NaN.
INLINE vec from_least(vec exponent) {
    return larger(set(-126), exponent);
}

INLINE vec fraction(vec x) {
    return from_least(x) - _mm256_floor_ps(from_least(x));
}

INLINE vec times_power_of_two(vec x, vec exponent) {
    vec below = _mm256_floor_ps(from_least(exponent));
    ints biased = _mm256_add_epi32(_mm256_cvtps_epi32(below), _mm256_set1_epi32(127));
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

// ---- integers ---------------------------------------------------------------------------------------------------

INLINE ints no_ints(void) {
    return _mm256_setzero_si256();
}

INLINE ints all_ints(int x) {
    return _mm256_set1_epi32(x);
}

INLINE ints load_ints(const void *from) {
    return _mm256_loadu_si256((const __m256i *)from);
}

INLINE void store_ints(void *to, ints x) {
    _mm256_storeu_si256((__m256i *)to, x);
}

INLINE ints repeat(const void *from) {
    int x;
    memcpy(&x, from, sizeof x);
    return all_ints(x);
}

INLINE ints first_lanes(ints a, ints b) {
    return _mm256_unpacklo_epi32(a, b);
}

INLINE ints last_lanes(ints a, ints b) {
    return _mm256_unpackhi_epi32(a, b);
}

INLINE ints first_pairs(ints a, ints b) {
    return _mm256_unpacklo_epi64(a, b);
}

INLINE ints last_pairs(ints a, ints b) {
    return _mm256_unpackhi_epi64(a, b);
}

INLINE void exchange_fours(ints x[LANES]) {
    UNROLLED (i, 4) {
        ints first = x[i];
        x[i] = _mm256_permute2x128_si256(first, x[i + 4], 0x20);
        x[i + 4] = _mm256_permute2x128_si256(first, x[i + 4], 0x31);
    }
}

INLINE vec as_floats(ints bits) {
    return _mm256_castsi256_ps(bits);
}

INLINE ints as_bits(vec x) {
    return _mm256_castps_si256(x);
}

INLINE vec to_floats(ints x) {
    return _mm256_cvtepi32_ps(x);
}

INLINE ints to_ints(vec x) {
    return _mm256_cvtps_epi32(x);
}

INLINE ints add_ints(ints a, ints b) {
    return _mm256_add_epi32(a, b);
}

INLINE ints subtract_ints(ints a, ints b) {
    return _mm256_sub_epi32(a, b);
}

INLINE int sum_of_ints(ints x) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
}

INLINE ints larger_unsigned(ints a, ints b) {
    return _mm256_max_epu32(a, b);
}

INLINE unsigned largest_unsigned_of(ints x) {
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    __m128i two = _mm_max_epu32(four, _mm_unpackhi_epi64(four, four));
    unsigned a = (unsigned)_mm_cvtsi128_si32(two), b = (unsigned)_mm_extract_epi32(two, 1);
    return a > b ? a : b;
}

INLINE __m128i narrowed(ints x) {
    return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

#ifdef __AVXVNNI__

INLINE void store_whole(whole *to, ints x) {
    _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(narrowed(x), _mm_setzero_si128()));
}

INLINE ints int8_of_step(ints weights, const int step) {
    return (void)step, weights;
}

INLINE ints add_products_int8(ints sum, ints weights, ints x) {
    return _mm256_dpbusd_avx_epi32(sum, weights, x);
}

#else

INLINE void store_whole(whole *to, ints x) {
    _mm_storeu_si128((__m128i *)to, narrowed(x));
}

// The first two of four weights lie in the low halves of 16 bits, the last two in the high ones.
INLINE ints int8_of_step(ints weights, const int step) {
    return _mm256_srai_epi16(step ? weights : _mm256_slli_epi16(weights, 8), 8);
}

INLINE ints add_products_int8(ints sum, ints weights, ints x) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights, x));
    __asm__("" : "+x"(sum)); // else gcc adds the products of steps first, for which there are no registers
    return sum;
}

#endif

// ---- bfloat16 ---------------------------------------------------------------------------------------------------

INLINE vec even_bf16(ints pairs) {
    return as_floats(_mm256_slli_epi32(pairs, 16));
}

INLINE vec odd_bf16(ints pairs) {
    return as_floats(_mm256_slli_epi32(_mm256_srli_epi32(pairs, 16), 16)); // a mask would take a register
}
