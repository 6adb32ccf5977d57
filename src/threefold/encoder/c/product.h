// Matrix products of a few rows by packed weights, at the rate of the processor (docs/speed.md).
//
// Weights are in panels of so many outputs as a tile is wide. A panel has its inputs in groups of 4 bytes, as the
// instructions read them:
//   BF16   [inputs / 2][PANEL][2]   by inputs that are states
//   INT8   [inputs / 4][PANEL][4]   by whole inputs
//   FLOAT  [inputs][PANEL]          by inputs in float32: attention where states are that

#pragma once

#include "numbers.h"

enum { PANEL = WIDE * LANES, GROUP_BYTES = 4, VECTOR_BYTES = 4 * LANES, LINE_BYTES = 64 };

enum kind { BF16, INT8, FLOAT };

// What a tile reads and writes; strides are in bytes.
struct operands {
    const char *inputs, *weights;
    ptrdiff_t input_stride, sum_stride;
    int groups;        // of weights, for each output
    int add;           // to the sums that are there already
    void *sums;        // float32, or int32 in int8
    const char *ahead; // weights that are wanted next, or NULL: half as many of them are fetched as are read
};

// A group of weights meets 4 bytes of inputs, or 8 where inputs are wider than weights: then in two steps.
INLINE int steps(const enum kind kind) {
    return kind == INT8 ? sizeof(whole) : kind == BF16 ? sizeof(state) / sizeof(bf16) : 1;
}

INLINE ints weights_of_step(const enum kind kind, const int step, ints weights) {
    if (kind == INT8) return int8_of_step(weights, step);
    if (steps(kind) == 1) return weights;
    return as_bits(step ? odd_bf16(weights) : even_bf16(weights));
}

INLINE ints add_products(const enum kind kind, ints sum, ints weights, ints x) {
    if (kind == INT8) return add_products_int8(sum, weights, x);
#ifdef __AVX512BF16__
    return as_bits(add_products_bf16(as_floats(sum), weights, x));
#else
    return as_bits(multiply_add(as_floats(weights), as_floats(x), as_floats(sum)));
#endif
}

INLINE void fetch(const void *from, int bytes) {
    for (int line = 0; line < bytes; line += LINE_BYTES) _mm_prefetch((const char *)from + line, _MM_HINT_T0);
}

// `rows` rows by `wide` registers of columns: constants where it is called, so the sums stay in registers.
INLINE void tile(const enum kind kind, const int rows, const int wide, const struct operands *o) {
    ints sums[2 * TILE_ROWS][WIDE], weights[WIDE];
    char *to = o->sums;
    UNROLLED (r, rows)
        UNROLLED (j, wide) sums[r][j] = o->add ? load_ints(to + r * o->sum_stride + VECTOR_BYTES * j) : no_ints();
    const char *from = o->inputs, *w = o->weights, *ahead = o->ahead;
    const ptrdiff_t stride = o->input_stride;
    for (int g = 0; g < o->groups; g++, w += VECTOR_BYTES * wide) {
        if (ahead) fetch(ahead, PANEL * GROUP_BYTES / 2), ahead += PANEL * GROUP_BYTES / 2;
        UNROLLED (step, steps(kind)) {
            UNROLLED (j, wide) weights[j] = weights_of_step(kind, step, load_ints(w + VECTOR_BYTES * j));
            UNROLLED (r, rows) {
                ints x = repeat(from + r * stride);
                UNROLLED (j, wide) sums[r][j] = add_products(kind, sums[r][j], weights[j], x);
            }
            from += GROUP_BYTES;
        }
    }
    UNROLLED (r, rows)
        UNROLLED (j, wide) store_ints(to + r * o->sum_stride + VECTOR_BYTES * j, sums[r][j]);
}

// 1 to TILE_ROWS rows by one panel.
INLINE void rows_by_panel(const enum kind kind, int rows, const struct operands *o) {
    switch (rows) {
    case 1: tile(kind, 1, WIDE, o); break;
    case 2: tile(kind, 2, WIDE, o); break;
    case 3: tile(kind, 3, WIDE, o); break;
    case 4: tile(kind, 4, WIDE, o); break;
    case 5: tile(kind, 5, WIDE, o); break;
    case 6: tile(kind, 6, WIDE, o); break;
    }
}

static void rows_by_panel_bf16(int rows, const struct operands *o) {
    rows_by_panel(BF16, rows, o);
}

static void rows_by_panel_int8(int rows, const struct operands *o) {
    rows_by_panel(INT8, rows, o);
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
