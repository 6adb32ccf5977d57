// Conversions and functions of 16 float32 at a time (AVX512, AVX512-BF16). NaN stays NaN everywhere: what a model
// cannot compute in these numbers is seen by the caller, and computed again in float32.

#pragma once

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

INLINE __m512 read_bf16(const bf16 *from) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

INLINE void write_bf16(bf16 *to, __m512 x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

// 2^x: the whole part goes into the exponent, the rest (at most 1/2) through the Taylor series of e^(x ln 2), whose
// next term is below 2e-7. Below -126 it is 2^-126: nothing that a sum of weights can see.
INLINE __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x); // in this order NaN stays NaN
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 y = _mm512_mul_ps(_mm512_sub_ps(x, whole), _mm512_set1_ps(0.69314718f));
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, y, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, y, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, y, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, y, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, y, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, y, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

// x (1 + erf(x / sqrt 2)) / 2, the exact GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415), with the rational
// approximation of erf by Abramowitz and Stegun 1964, formula 7.1.26: absolute error at most 1.5e-7.
INLINE __m512 gelu(__m512 x) {
    __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    __m512 t =
        _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), _mm512_set1_ps(1.0f)));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    p = _mm512_mul_ps(p, t);
    __m512 bell = power_of_two(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f)));
    __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, bell), half); // x/2 (1 - erf |z|)
    __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(_mm512_sub_ps(x, tail), negative, tail);
}

// Largest magnitude as an integer with the bits of that float: NaN is above infinity, and so is not lost.
INLINE __m512i larger_magnitude(__m512i bits, __m512 x) {
    return _mm512_max_epu32(bits, _mm512_castps_si512(_mm512_abs_ps(x)));
}

INLINE float magnitude(__m512i bits) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)_mm512_reduce_max_epu32(bits))));
}
