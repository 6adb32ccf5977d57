// Vectors of 16 float32 (AVX512), products in bfloat16 and int8 by AVX512-BF16 and AVX512-VNNI. The same names as in
// avx2.h; what they mean is said here.

#pragma once

#include "base.h"

typedef __m512 vec;   // + - * / work on it
typedef __m512i ints; // of 32 bits
typedef int8_t whole; // an input of a product in int8

enum {
    LANES = 16,
    WIDE = 4,         // registers of columns in a tile,
    TILE_ROWS = 6,    // and rows: 24 registers of sums, so nothing is read but weights and inputs, each once
    ZERO_POINT = 128, // of int8 weights, which are unsigned: the product wants one unsigned side, and only the signed
                      // side can be repeated from memory
};

INLINE vec set(float x) {
    return _mm512_set1_ps(x);
}

INLINE vec load(const float *from) {
    return _mm512_loadu_ps(from);
}

INLINE void store(float *to, vec x) {
    _mm512_storeu_ps(to, x);
}

INLINE vec multiply_add(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}

INLINE vec magnitudes(vec x) {
    return _mm512_abs_ps(x);
}

// b where one of both is NaN.
INLINE vec larger(vec a, vec b) {
    return _mm512_max_ps(a, b);
}

INLINE float sum_of(vec x) {
    return _mm512_reduce_add_ps(x);
}

INLINE float largest_of(vec x) {
    return _mm512_reduce_max_ps(x);
}

// The first `count` of x, behind them `other`.
INLINE vec first_of(vec x, int count, float other) {
    __mmask16 here = count >= LANES ? 0xFFFF : (__mmask16)((1u << count) - 1);
    return _mm512_mask_mov_ps(set(other), here, x);
}

INLINE vec if_negative(vec x, vec then, vec otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), then);
}

// What is above the whole number below: from 0 to 1.
INLINE vec fraction(vec x) {
    return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

// x 2^(the whole number below the exponent), where that is at most 127. Below -126 it is nothing, or next to nothing.
INLINE vec times_power_of_two(vec x, vec exponent) {
    return _mm512_scalef_ps(x, exponent);
}

// ---- integers ---------------------------------------------------------------------------------------------------

INLINE ints no_ints(void) {
    return _mm512_setzero_si512();
}

INLINE ints all_ints(int x) {
    return _mm512_set1_epi32(x);
}

INLINE ints load_ints(const void *from) {
    return _mm512_loadu_si512(from);
}

INLINE void store_ints(void *to, ints x) {
    _mm512_storeu_si512(to, x);
}

// 4 bytes, in each lane.
INLINE ints repeat(const void *from) {
    int x;
    memcpy(&x, from, sizeof x);
    return all_ints(x);
}

// In each four: lanes of a and of b by turns, the first two of both or the last two; and the same of pairs of lanes.
INLINE ints first_lanes(ints a, ints b) {
    return _mm512_unpacklo_epi32(a, b);
}

INLINE ints last_lanes(ints a, ints b) {
    return _mm512_unpackhi_epi32(a, b);
}

INLINE ints first_pairs(ints a, ints b) {
    return _mm512_unpacklo_epi64(a, b);
}

INLINE ints last_pairs(ints a, ints b) {
    return _mm512_unpackhi_epi64(a, b);
}

// The last step of `transpose`: whole fours change places.
INLINE void exchange_fours(ints x[LANES]) {
    ints y[LANES];
    UNROLLED (i, 8) {
        ints *from = x + i / 4 * 8 + i % 4, *to = y + i / 4 * 8 + i % 4;
        to[0] = _mm512_shuffle_i32x4(from[0], from[4], 0x88);
        to[4] = _mm512_shuffle_i32x4(from[0], from[4], 0xDD);
    }
    UNROLLED (i, 8) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xDD);
    }
}

INLINE vec as_floats(ints bits) {
    return _mm512_castsi512_ps(bits);
}

INLINE ints as_bits(vec x) {
    return _mm512_castps_si512(x);
}

INLINE vec to_floats(ints x) {
    return _mm512_cvtepi32_ps(x);
}

INLINE ints to_ints(vec x) {
    return _mm512_cvtps_epi32(x);
}

INLINE ints add_ints(ints a, ints b) {
    return _mm512_add_epi32(a, b);
}

INLINE ints subtract_ints(ints a, ints b) {
    return _mm512_sub_epi32(a, b);
}

INLINE int sum_of_ints(ints x) {
    return _mm512_reduce_add_epi32(x);
}

INLINE ints larger_unsigned(ints a, ints b) {
    return _mm512_max_epu32(a, b);
}

INLINE unsigned largest_unsigned_of(ints x) {
    return _mm512_reduce_max_epu32(x);
}

INLINE void store_whole(whole *to, ints x) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8(x));
}

// ---- bfloat16 ---------------------------------------------------------------------------------------------------

INLINE vec even_bf16(ints pairs) {
    return as_floats(_mm512_slli_epi32(pairs, 16));
}

INLINE vec odd_bf16(ints pairs) {
    return as_floats(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xFFFF0000u)));
}

#ifdef __AVX512BF16__

INLINE vec read_bf16(const bf16 *from) {
    return even_bf16(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)));
}

INLINE void write_bf16(bf16 *to, vec x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

// Two rows of 16 numbers -> 16 pairs.
INLINE ints pairs_of(ints even, ints odd) {
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

INLINE ints widened(const bf16 *from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
}

// sum + the two products of each pair.
INLINE vec add_products_bf16(vec sum, ints weights, ints x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)x);
}

#endif

// Of four weights as they are stored: those of a step, of which there is one.
INLINE ints int8_of_step(ints weights, const int step) {
    return (void)step, weights;
}

// sum + the products of each lane.
INLINE ints add_products_int8(ints sum, ints weights, ints x) {
    return _mm512_dpbusd_epi32(sum, weights, x);
}
