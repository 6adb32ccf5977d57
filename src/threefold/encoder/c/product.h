// Matrix products of a few rows by packed weights, at the rate of the processor (docs/speed.md).
//
// Weights are in panels of 64 outputs. A panel has its inputs in groups of 4 bytes, as the instructions read them:
//   bfloat16  [inputs / 2][64][2]
//   int8      [inputs / 4][64][4], unsigned with 128 as zero: the product wants one unsigned side, and only the
//             signed side can be repeated from memory
// A tile is at most 6 rows by 64 columns (or 12 by 32): 24 registers of sums, so nothing but weights and inputs is read.

#pragma once

#include "numbers.h"

enum { PANEL = 64, TILE_ROWS = 6, GROUP_BYTES = 4, ZERO_POINT = 128 };

// Sums (rows, 16 * wide) of a tile. `wide` registers to a row, constant like `rows`; `groups` of 4 bytes; strides in
// bytes. `ahead`, if not null, is where weights are that will be wanted next: two lines of it are fetched per group.
#define TILE(name, sums_t, zeros, load_sums, store_sums, multiply)                                                      \
    INLINE void name(const int rows, const int wide, const char *a, ptrdiff_t a_stride, const char *w, int groups,      \
                     void *to, ptrdiff_t to_stride, int add, const char *ahead) {                                      \
        sums_t sums[12][4];                                                                                            \
        _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++)                                                        \
            _Pragma("GCC unroll 4") for (int j = 0; j < wide; j++)                                                     \
                sums[r][j] = add ? load_sums((char *)to + r * to_stride + 64 * j) : zeros();                           \
        for (int g = 0; g < groups; g++) {                                                                             \
            __m512i weights[4];                                                                                        \
            _Pragma("GCC unroll 4") for (int j = 0; j < wide; j++)                                                     \
                weights[j] = _mm512_loadu_si512(w + ((ptrdiff_t)g * wide + j) * 64);                                   \
            if (ahead) {                                                                                               \
                _mm_prefetch(ahead + (ptrdiff_t)g * 128, _MM_HINT_T1);                                                 \
                _mm_prefetch(ahead + (ptrdiff_t)g * 128 + 64, _MM_HINT_T1);                                            \
            }                                                                                                          \
            _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) {                                                  \
                __m512i x = _mm512_set1_epi32(*(const int *)(a + r * a_stride + (ptrdiff_t)g * GROUP_BYTES));           \
                _Pragma("GCC unroll 4") for (int j = 0; j < wide; j++)                                                 \
                    sums[r][j] = multiply(sums[r][j], weights[j], x);                                                  \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++)                                                        \
            _Pragma("GCC unroll 4") for (int j = 0; j < wide; j++)                                                     \
                store_sums((char *)to + r * to_stride + 64 * j, sums[r][j]);                                           \
    }

#define MULTIPLY_BF16(sum, w, x) _mm512_dpbf16_ps(sum, (__m512bh)(w), (__m512bh)(x))
#define MULTIPLY_INT8(sum, w, x) _mm512_dpbusd_epi32(sum, w, x)

TILE(tile_bf16, __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, MULTIPLY_BF16)
TILE(tile_int8, __m512i, _mm512_setzero_si512, _mm512_loadu_si512, _mm512_storeu_si512, MULTIPLY_INT8)

#define ROWS_64(tile, n) case n: tile(n, 4, a, a_stride, w, groups, to, to_stride, add, ahead); break;
#define ROWS_32(tile, n) case n: tile(n, 2, a, a_stride, w, groups, to, to_stride, add, ahead); break;
#define ARGUMENTS                                                                                                       \
    int rows, const char *a, ptrdiff_t a_stride, const char *w, int groups, void *to, ptrdiff_t to_stride, int add,     \
        const char *ahead

// 1 to 6 rows by 64 columns.
static void few_rows_bf16(ARGUMENTS) {
    switch (rows) {
        ROWS_64(tile_bf16, 1) ROWS_64(tile_bf16, 2) ROWS_64(tile_bf16, 3)
        ROWS_64(tile_bf16, 4) ROWS_64(tile_bf16, 5) ROWS_64(tile_bf16, 6)
    }
}

static void few_rows_int8(ARGUMENTS) {
    switch (rows) {
        ROWS_64(tile_int8, 1) ROWS_64(tile_int8, 2) ROWS_64(tile_int8, 3)
        ROWS_64(tile_int8, 4) ROWS_64(tile_int8, 5) ROWS_64(tile_int8, 6)
    }
}

// 1 to 12 rows by 32 columns: values of heads of 32 dimensions.
static void few_rows_32(ARGUMENTS) {
    switch (rows) {
        ROWS_32(tile_bf16, 1) ROWS_32(tile_bf16, 2) ROWS_32(tile_bf16, 3) ROWS_32(tile_bf16, 4)
        ROWS_32(tile_bf16, 5) ROWS_32(tile_bf16, 6) ROWS_32(tile_bf16, 7) ROWS_32(tile_bf16, 8)
        ROWS_32(tile_bf16, 9) ROWS_32(tile_bf16, 10) ROWS_32(tile_bf16, 11) ROWS_32(tile_bf16, 12)
    }
}

// `total` rows are cut into tiles of nearly equal height: this is where tile `i` of `tiles` begins.
INLINE int border(int total, int tiles, int i) { return (int)((int64_t)total * i / tiles); }

INLINE int tiles_of(int total, int rows) { return (total + rows - 1) / rows; }
