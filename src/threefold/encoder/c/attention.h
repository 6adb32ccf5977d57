// softmax(q k' / sqrt(head)) v of one head of one text, block by block with a running maximum (Milakov and Gimelshein
// 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135): no table of scores, whatever the length.
//
// Keys and values are packed once per head of a text, padded to whole panels of keys; those of a text that is one
// block of queries where they are used. A group is one state in float32, or two in bfloat16:
//   keys    [keys / PANEL][groups of a head][PANEL]           weights of the product q k'
//   values  [head / columns][groups of keys][columns]         weights of the product p v

#pragma once

#include "product.h"

enum {
    PER_GROUP = GROUP_BYTES / sizeof(state),
    BLOCK_QUERIES = 48,
    BLOCK_KEYS = 128 * PER_GROUP, // half as many stay in the first cache and are slower: more often they are begun anew
    OWN_KEYS = (BLOCK_QUERIES + PANEL - 1) / PANEL * PANEL,
    MOST_HEAD = 64,
};

static const enum kind STATES = FLOAT_STATES ? FLOAT : BF16;

INLINE int padded(int length) {
    return tiles_of(length, PANEL) * PANEL;
}

// Columns of a head that are one panel of values.
INLINE int value_columns(int head) {
    return least(head, PANEL);
}

// 1 to TILE_ROWS rows by one panel; twice as many by half of one.
static void states_by_panel(int rows, const struct operands *o) {
    rows_by_panel(STATES, rows, o);
}

static void states_by_half(int rows, const struct operands *o) {
    switch (rows) {
    case 1: tile(STATES, 1, WIDE / 2, o); break;
    case 2: tile(STATES, 2, WIDE / 2, o); break;
    case 3: tile(STATES, 3, WIDE / 2, o); break;
    case 4: tile(STATES, 4, WIDE / 2, o); break;
    case 5: tile(STATES, 5, WIDE / 2, o); break;
    case 6: tile(STATES, 6, WIDE / 2, o); break;
    case 7: tile(STATES, 7, WIDE / 2, o); break;
    case 8: tile(STATES, 8, WIDE / 2, o); break;
    case 9: tile(STATES, 9, WIDE / 2, o); break;
    case 10: tile(STATES, 10, WIDE / 2, o); break;
    case 11: tile(STATES, 11, WIDE / 2, o); break;
    case 12: tile(STATES, 12, WIDE / 2, o); break;
    }
}

// LANES groups of the first `count` of LANES rows, turned over; zeros for the other rows.
INLINE void pack_square(const state *rows, ptrdiff_t stride, int count, state *to) {
    ints square[LANES];
    UNROLLED (i, LANES) square[i] = i < count ? load_ints(rows + i * stride) : no_ints();
    if (count > 0) transpose(square);
    UNROLLED (i, LANES) store_ints(to + i * PANEL * PER_GROUP, square[i]);
}

// From rows of `stride` states each.
static void pack_keys(const state *keys, ptrdiff_t stride, int length, int head, state *to) {
    for (int row = 0; row < padded(length); row += LANES)
        for (int c = 0; c < head; c += LANES * PER_GROUP)
            pack_square(keys + row * stride + c, stride, length - row,
                        to + row / PANEL * PANEL * head + c * PANEL + row % PANEL * PER_GROUP);
}

// One group of rows from this one on, 4 bytes for each of LANES columns.
INLINE ints group_of_rows(const state *values, ptrdiff_t stride, int row, int length) {
#ifdef __AVX512BF16__
    ints even = row < length ? widened(values + row * stride) : no_ints();
    ints odd = row + 1 < length ? widened(values + (row + 1) * stride) : no_ints();
    return pairs_of(even, odd);
#else
    return row < length ? load_ints(values + row * stride) : no_ints();
#endif
}

static void pack_values(const state *values, ptrdiff_t stride, int length, int head, state *to) {
    const int columns = value_columns(head);
    for (int first = 0; first < head; first += columns)
        for (int row = 0; row < padded(length); row += PER_GROUP)
            for (int c = first; c < first + columns; c += LANES, to += LANES * PER_GROUP)
                store_ints(to, group_of_rows(values + c, stride, row, length));
}

// What is under way for a block of queries.
struct block {
    float scores[BLOCK_QUERIES * BLOCK_KEYS], found[BLOCK_QUERIES * MOST_HEAD];
    float top[BLOCK_QUERIES], sum[BLOCK_QUERIES], fade[BLOCK_QUERIES];
    state weights[BLOCK_QUERIES * BLOCK_KEYS];
    state queries[BLOCK_QUERIES * MOST_HEAD]; // end to end: rows of `qkv` would share few places of the first cache
};

// Scores of `rows` queries with `valid` keys.
INLINE void score(struct block *b, int rows, const state *keys, int valid, int head) {
    const int tiles = tiles_of(rows, TILE_ROWS);
    for (int j = 0; j < valid; j += PANEL)
        for (int i = 0; i < tiles; i++) {
            int first = border(rows, tiles, i), last = border(rows, tiles, i + 1);
            struct operands o = {.inputs = (const char *)(b->queries + first * head),
                                 .input_stride = head * sizeof(state),
                                 .weights = (const char *)(keys + (ptrdiff_t)j * head),
                                 .groups = head / PER_GROUP,
                                 .sums = b->scores + first * BLOCK_KEYS + j,
                                 .sum_stride = BLOCK_KEYS * sizeof(float)};
            states_by_panel(last - first, &o);
        }
}

INLINE float top_of(const float *scores, int valid, float before) {
    vec most = set(before);
    for (int j = 0; j < valid; j += LANES) {
        vec x = load(scores + j);
        if (j + LANES > valid) x = first_of(x, valid - j, before);
        most = larger(most, x);
    }
    return largest_of(most);
}

// One row of scores becomes weights that are not yet divided by their sum, with zeros up to a whole vector. Returns it.
INLINE float weigh(const float *scores, state *weights, int valid, float scale, float top) {
    const vec by = set(scale), shift = set(-top * scale);
    vec all = set(0);
    for (int j = 0; j < valid; j += LANES) {
        vec x = power_of_two(multiply_add(load(scores + j), by, shift));
        if (j + LANES > valid) x = first_of(x, valid - j, 0);
        write_state(weights + j, x);
        all = all + x;
    }
    return sum_of(all);
}

// Scores become weights. What was summed so far has to be multiplied by `fade`.
INLINE void soften(struct block *b, int rows, int valid, float scale) {
    for (int r = 0; r < rows; r++) {
        float top = top_of(b->scores + r * BLOCK_KEYS, valid, b->top[r]);
        b->fade[r] = (b->top[r] - top) * scale;
        b->top[r] = top;
    }
    for (int r = 0; r < BLOCK_QUERIES; r += LANES) store(b->fade + r, power_of_two(load(b->fade + r)));
    for (int r = 0; r < rows; r++) {
        const int at = r * BLOCK_KEYS;
        b->sum[r] = b->sum[r] * b->fade[r] + weigh(b->scores + at, b->weights + at, valid, scale, b->top[r]);
    }
}

// Adds `valid` values, each by its weight. From one panel of values to the next it is `step` states.
INLINE void add_values(struct block *b, int rows, const state *values, ptrdiff_t step, int valid, int head) {
    const int columns = value_columns(head), half = columns < PANEL;
    const int tiles = tiles_of(rows, half ? 2 * TILE_ROWS : TILE_ROWS);
    for (int c = 0; c < head; c += columns, values += step)
        for (int i = 0; i < tiles; i++) {
            int first = border(rows, tiles, i), last = border(rows, tiles, i + 1);
            struct operands o = {.inputs = (const char *)(b->weights + first * BLOCK_KEYS),
                                 .input_stride = BLOCK_KEYS * sizeof(state),
                                 .weights = (const char *)values,
                                 .groups = tiles_of(valid, PER_GROUP),
                                 .sums = b->found + first * head + c,
                                 .sum_stride = head * sizeof(float),
                                 .add = 1};
            (half ? states_by_half : states_by_panel)(last - first, &o);
        }
}

// Rows first to last of a text. `queries` and `to` are at its first token, with rows of q_stride and stride numbers.
static void attend(const state *queries, ptrdiff_t q_stride, const state *keys, const state *values, int length,
                   int head, int first, int last, state *to, ptrdiff_t stride) {
    struct block b;
    const int rows = last - first, columns = value_columns(head);
    const float scale = 1.44269504f / sqrtf((float)head); // weights are powers of two
    memset(b.found, 0, sizeof b.found);
    for (int r = 0; r < BLOCK_QUERIES; r++) b.top[r] = -FLT_MAX, b.sum[r] = b.fade[r] = 0;
    for (int r = 0; r < rows; r++) memcpy(b.queries + r * head, queries + (first + r) * q_stride, head * sizeof(state));
    for (int start = 0; start < length; start += BLOCK_KEYS) {
        const int valid = least(length - start, BLOCK_KEYS);
        score(&b, rows, keys + (ptrdiff_t)start * head, valid, head);
        soften(&b, rows, valid, scale);
        for (int r = 0; start && r < rows; r++)
            for (float *x = b.found + r * head, *end = x + head; x < end; x += LANES)
                store(x, load(x) * set(b.fade[r]));
        add_values(&b, rows, values + (ptrdiff_t)start * columns, (ptrdiff_t)padded(length) * columns, valid, head);
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < head; c += LANES)
            write_state(to + (first + r) * stride + c, load(b.found + r * head + c) / set(b.sum[r]));
}
