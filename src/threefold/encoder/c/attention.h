// softmax(q k' / sqrt(head)) v of one head of one text, block by block with a running maximum (Milakov and Gimelshein
// 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135): no table of scores, whatever the length.
//
// Keys and values are packed once per head of a text, padded to whole panels of 64 keys; those of a text that is one
// block of queries where they are used:
//   keys    [keys / 64][head / 2][64][2]   weights of the product q k'
//   values  [keys / 2][head][2]            weights of the product p v

#pragma once

#include "product.h"

// A block of scores is 24 kB and stays in the first cache.
enum { BLOCK_QUERIES = 48, BLOCK_KEYS = 128, MOST_HEAD = 64 };

INLINE int padded(int length) {
    return tiles_of(length, PANEL) * PANEL;
}

INLINE __mmask16 first_of_16(int count) {
    return count >= 16 ? 0xFFFF : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

// From rows of `stride` bfloat16 each. Rows behind the end are zeros.
static void pack_keys(const bf16 *keys, ptrdiff_t stride, int length, int head, bf16 *to) {
    const __m512i rows = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                            _mm512_set1_epi32((int)(stride * sizeof(bf16))));
    for (int first = 0; first < padded(length); first += PANEL)
        for (int g = 0; g < head; g += 2)
            for (int row = first; row < first + PANEL; row += 16, to += 32) {
                __m512i column = _mm512_setzero_si512();
                if (row < length)
                    column = _mm512_mask_i32gather_epi32(column, first_of_16(length - row), rows,
                                                         keys + row * stride + g, 1);
                _mm512_storeu_si512(to, column);
            }
}

static void pack_values(const bf16 *values, ptrdiff_t stride, int length, int head, bf16 *to) {
    for (int row = 0; row < padded(length); row += 2)
        for (int c = 0; c < head; c += 16, to += 32) {
            __m512i even = _mm512_setzero_si512(), odd = even;
            if (row < length)
                even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(values + row * stride + c)));
            if (row + 1 < length)
                odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(values + (row + 1) * stride + c)));
            _mm512_storeu_si512(to, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
}

// One row of scores becomes weights that are not yet divided by their sum: the first `valid`, and zeros up to a
// multiple of 16. Returns what everything summed so far has to be multiplied by.
INLINE float soften(const float *scores, bf16 *weights, int valid, float scale, float *top, float *sum) {
    __m512 most = _mm512_set1_ps(-INFINITY), all = _mm512_setzero_ps();
    for (int j = 0; j < valid; j += 16) {
        __mmask16 here = first_of_16(valid - j);
        most = _mm512_mask_max_ps(most, here, most, _mm512_loadu_ps(scores + j));
    }
    float before = *top, now = fmaxf(before, _mm512_reduce_max_ps(most));
    for (int j = 0; j < valid; j += 16) {
        __m512 x = _mm512_sub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(now)); // 0 at the top, to the bit
        x = _mm512_mul_ps(x, _mm512_set1_ps(scale));
        x = _mm512_maskz_mov_ps(first_of_16(valid - j), power_of_two(x));
        write_bf16(weights + j, x);
        all = _mm512_add_ps(all, x);
    }
    float fade = exp2f((before - now) * scale); // 0 for the first block
    *top = now;
    *sum = *sum * fade + _mm512_reduce_add_ps(all);
    return fade;
}

// Rows first to last of a text. `queries` and `to` are at its first token, with rows of q_stride and stride numbers.
static void attend(const bf16 *queries, ptrdiff_t q_stride, const bf16 *keys, const bf16 *values, int length, int head,
                   int first, int last, bf16 *to, ptrdiff_t stride) {
    float scores[BLOCK_QUERIES * BLOCK_KEYS], found[BLOCK_QUERIES * MOST_HEAD] = {0};
    float top[BLOCK_QUERIES], sum[BLOCK_QUERIES] = {0};
    bf16 weights[BLOCK_QUERIES * BLOCK_KEYS];
    const int rows = last - first, score_tiles = tiles_of(rows, TILE_ROWS);
    const int value_tiles = head == 32 ? tiles_of(rows, 2 * TILE_ROWS) : score_tiles;
    const float scale = 1.44269504f / sqrtf((float)head); // weights are powers of two
    for (int r = 0; r < rows; r++) top[r] = -INFINITY;
    for (int start = 0; start < length; start += BLOCK_KEYS) {
        const int valid = least(length - start, BLOCK_KEYS);
        for (int j = 0; j < valid; j += PANEL)
            for (int i = 0; i < score_tiles; i++) {
                int a = border(rows, score_tiles, i), b = border(rows, score_tiles, i + 1);
                struct operands o = {.inputs = (const char *)(queries + (first + a) * q_stride),
                                     .input_stride = q_stride * sizeof(bf16),
                                     .weights = (const char *)(keys + (ptrdiff_t)(start + j) * head),
                                     .groups = head / 2,
                                     .sums = scores + a * BLOCK_KEYS + j,
                                     .sum_stride = BLOCK_KEYS * sizeof(float)};
                rows_by_64_bf16(b - a, &o);
            }
        for (int r = 0; r < rows; r++) {
            float fade = soften(scores + r * BLOCK_KEYS, weights + r * BLOCK_KEYS, valid, scale, top + r, sum + r);
            for (int c = 0; c < head; c += 16) {
                float *at = found + r * head + c;
                _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_set1_ps(fade)));
            }
        }
        for (int i = 0; i < value_tiles; i++) {
            int a = border(rows, value_tiles, i), b = border(rows, value_tiles, i + 1);
            struct operands o = {.inputs = (const char *)(weights + a * BLOCK_KEYS),
                                 .input_stride = BLOCK_KEYS * sizeof(bf16),
                                 .weights = (const char *)(values + (ptrdiff_t)start * head),
                                 .groups = (valid + 1) / 2,
                                 .sums = found + a * head,
                                 .sum_stride = head * sizeof(float),
                                 .add = 1};
            (head == 32 ? rows_by_32_bf16 : rows_by_64_bf16)(b - a, &o);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < head; c += 16) {
            __m512 x = _mm512_div_ps(_mm512_loadu_ps(found + r * head + c), _mm512_set1_ps(sum[r]));
            write_bf16(to + (first + r) * stride + c, x);
        }
}
