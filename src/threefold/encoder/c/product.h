// Matrix products of a few rows by packed weights, at the rate of the processor (docs/speed.md).
//
// Weights are in panels of 64 outputs. A panel has its inputs in groups of 4 bytes, as the instructions read them:
//   bfloat16  [inputs / 2][64][2]
//   int8      [inputs / 4][64][4], unsigned with 128 as zero: the product wants one unsigned side, and only the
//             signed side can be repeated from memory
// A tile is at most 6 rows by 64 columns (or 12 by 32): 24 registers of sums, so that nothing is read but weights and
// inputs, each once.

#pragma once

#include "numbers.h"

enum { PANEL = 64, TILE_ROWS = 6, GROUP_BYTES = 4, ZERO_POINT_BITS = 7 };

#define UNROLLED(i, count) _Pragma("GCC unroll 12") for (int i = 0; i < count; i++)

// What a tile reads and writes; strides are in bytes.
struct operands {
    const char *inputs, *weights;
    ptrdiff_t input_stride, sum_stride;
    int groups;        // of 4 bytes in a row of inputs
    int add;           // to the sums that are there already
    void *sums;        // float32, or int32 in int8
    const char *ahead; // weights that are wanted next, or NULL: two lines of them are fetched per group
};

INLINE __m512i multiply(const int int8, __m512i sum, __m512i weights, __m512i x) {
    if (int8) return _mm512_dpbusd_epi32(sum, weights, x);
    __m512 more = _mm512_dpbf16_ps(_mm512_castsi512_ps(sum), (__m512bh)weights, (__m512bh)x);
    return _mm512_castps_si512(more);
}

// `rows` rows by `wide` registers of 16 columns: constants where it is called, so the sums stay in registers.
INLINE void tile(const int int8, const int rows, const int wide, const struct operands *o) {
    __m512i sums[12][4], weights[4];
    char *to = o->sums;
    UNROLLED (r, rows)
        UNROLLED (j, wide) {
            sums[r][j] = o->add ? _mm512_loadu_si512(to + r * o->sum_stride + 64 * j) : _mm512_setzero_si512();
        }
    const char *from = o->inputs, *w = o->weights, *ahead = o->ahead;
    const ptrdiff_t stride = o->input_stride;
    for (int g = 0; g < o->groups; g++, from += GROUP_BYTES) {
        UNROLLED (j, wide) weights[j] = _mm512_loadu_si512(w + 64 * j);
        w += 64 * wide;
        if (ahead) {
            _mm_prefetch(ahead, _MM_HINT_T1);
            _mm_prefetch(ahead + 64, _MM_HINT_T1);
            ahead += 128;
        }
        UNROLLED (r, rows) {
            __m512i x = _mm512_set1_epi32(*(const int *)(from + r * stride));
            UNROLLED (j, wide) sums[r][j] = multiply(int8, sums[r][j], weights[j], x);
        }
    }
    UNROLLED (r, rows)
        UNROLLED (j, wide) _mm512_storeu_si512(to + r * o->sum_stride + 64 * j, sums[r][j]);
}

// 1 to 6 rows by 64 columns.
INLINE void rows_by_64(const int int8, int rows, const struct operands *o) {
    switch (rows) {
    case 1: tile(int8, 1, 4, o); break;
    case 2: tile(int8, 2, 4, o); break;
    case 3: tile(int8, 3, 4, o); break;
    case 4: tile(int8, 4, 4, o); break;
    case 5: tile(int8, 5, 4, o); break;
    case 6: tile(int8, 6, 4, o); break;
    }
}

static void rows_by_64_bf16(int rows, const struct operands *o) {
    rows_by_64(0, rows, o);
}

static void rows_by_64_int8(int rows, const struct operands *o) {
    rows_by_64(1, rows, o);
}

// 1 to 12 rows by 32 columns, in bfloat16: the values of heads of 32 dimensions.
static void rows_by_32_bf16(int rows, const struct operands *o) {
    switch (rows) {
    case 1: tile(0, 1, 2, o); break;
    case 2: tile(0, 2, 2, o); break;
    case 3: tile(0, 3, 2, o); break;
    case 4: tile(0, 4, 2, o); break;
    case 5: tile(0, 5, 2, o); break;
    case 6: tile(0, 6, 2, o); break;
    case 7: tile(0, 7, 2, o); break;
    case 8: tile(0, 8, 2, o); break;
    case 9: tile(0, 9, 2, o); break;
    case 10: tile(0, 10, 2, o); break;
    case 11: tile(0, 11, 2, o); break;
    case 12: tile(0, 12, 2, o); break;
    }
}

// `total` rows are cut into tiles of nearly equal height: this is where tile `i` of `tiles` begins.
INLINE int border(int total, int tiles, int i) {
    return (int)((int64_t)total * i / tiles);
}

INLINE int tiles_of(int total, int rows) {
    return (total + rows - 1) / rows;
}

INLINE int least(int a, int b) {
    return a < b ? a : b;
}
