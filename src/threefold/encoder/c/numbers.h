// Vectors of this processor, states, and functions of them. NaN stays NaN everywhere: what a model cannot compute in
// these numbers is seen by the caller, and computed again in float32.
//
// States are what travels between the products: bfloat16 where there are products of it, else float32, by which the
// weights in bfloat16 are multiplied.

#pragma once

#ifdef __AVX512F__
#include "avx512.h"
#else
#include "avx2.h"
#endif

#ifdef __AVX512BF16__

typedef bf16 state;

enum { FLOAT_STATES = 0 };

INLINE vec read_state(const state *from) {
    return read_bf16(from);
}

INLINE void write_state(state *to, vec x) {
    write_bf16(to, x);
}

#else

typedef float state;

enum { FLOAT_STATES = 1 };

INLINE vec read_state(const state *from) {
    return load(from);
}

INLINE void write_state(state *to, vec x) {
    store(to, x);
}

#endif

// 2^x: the whole part goes into the exponent, the fraction through the polynomial of degree 5 whose largest relative
// error from 0 to 1 is least, 7.5e-8 (by Remez's exchange). From -126 down it is nothing that a sum could see, and
// NaN stays NaN.
INLINE vec power_of_two(vec x) {
    vec y = fraction(x);
    vec p = set(0.001877576766f);
    p = multiply_add(p, y, set(0.008989339877f));
    p = multiply_add(p, y, set(0.05582631823f));
    p = multiply_add(p, y, set(0.240153617f));
    p = multiply_add(p, y, set(0.6931530732f));
    p = multiply_add(p, y, set(0.9999999251f));
    return times_power_of_two(p, x);
}

// x (1 + erf(x / sqrt 2)) / 2, the exact GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415), with the rational
// approximation of erf by Abramowitz and Stegun 1964, formula 7.1.26: absolute error at most 1.5e-7.
INLINE vec gelu(vec x) {
    vec z = magnitudes(x) * set(0.70710678f);
    vec t = set(1.0f) / multiply_add(z, set(0.3275911f), set(1.0f));
    vec p = set(1.061405429f);
    p = multiply_add(p, t, set(-1.453152027f));
    p = multiply_add(p, t, set(1.421413741f));
    p = multiply_add(p, t, set(-0.284496736f));
    p = multiply_add(p, t, set(0.254829592f));
    vec bell = power_of_two(z * z * set(-1.44269504f));
    vec half = x * set(0.5f);
    vec tail = p * t * bell * half; // x/2 (1 - erf |z|)
    return if_negative(x, tail, x - tail);
}

// Largest magnitude as an integer with the bits of that float: NaN is above infinity, and so is not lost.
INLINE ints larger_magnitude(ints bits, vec x) {
    return larger_unsigned(bits, as_bits(magnitudes(x)));
}

INLINE float magnitude(ints bits) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)largest_unsigned_of(bits))));
}

// Row i, lane j becomes row j, lane i: first in squares of four, then the squares.
INLINE void transpose(ints x[LANES]) {
    ints y[LANES];
    UNROLLED (i, LANES / 2) {
        ints *from = x + 2 * i, *to = y + 2 * i;
        to[0] = first_lanes(from[0], from[1]), to[1] = last_lanes(from[0], from[1]);
    }
    UNROLLED (i, LANES / 4) {
        ints *from = y + 4 * i, *to = x + 4 * i;
        to[0] = first_pairs(from[0], from[2]), to[1] = last_pairs(from[0], from[2]);
        to[2] = first_pairs(from[1], from[3]), to[3] = last_pairs(from[1], from[3]);
    }
    exchange_fours(x);
}
