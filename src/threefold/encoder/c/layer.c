// Layers of BERT / XLM-RoBERTa (attention and feed-forward, each with residual and LayerNorm) for inference, all in
// one call. The same function as `_PackedLayer` in packed.py. One build for each kind of processor (compiling.py):
// what is special to it is in avx512.h and avx2.h.
//
// Work is cut into stages, and a stage into tasks. A token's numbers never depend on how, so a text's result does not
// depend on its batch, to the last bit.

#include "attention.h"
#include "team.h"

#ifndef SOURCES
#define SOURCES ""
#endif

// (outputs, inputs), packed by threefold_pack. `scale` (outputs,) only in int8.
struct matrix {
    const char *weight;
    const float *scale, *bias;
    int outputs, inputs;
};

struct norm {
    const float *weight, *bias;
};

struct layer {
    struct matrix qkv, attended, up, down;
    struct norm attended_norm, down_norm;
    int hidden, ffn, heads, int8;
    float eps;
};

// Rows as the products read them: states, or whole numbers with the step and the sum of each row.
struct rows {
    char *values;
    float *step;
    int32_t *sum;
};

// Up to so many tokens are one block of rows, and threads share the columns, each a range of its own.
enum {
    SHORT = 24,
    BLOCK_BYTES = 512 << 10,
    PART_BYTES = 128 << 10, // of a panel: a part stays in the second cache, beside the next one and a block of rows
    MOST_SUMS = BLOCK_BYTES / PART_BYTES * PANEL + TILE_ROWS, // rows of a block whose panels are more than one part
    MOST_COLUMNS = 512,
    TASKS_PER_THREAD = 4,
    ROWS_AT_ONCE = 1024,
    ROWS_PER_TASK = 8
};

struct pass {
    const struct layer *layer;
    float *x;
    const int64_t *offsets;
    int texts, tokens, layers;
    struct team *team;
    int threads;     // of the team
    int first, rows; // of the part after attention: so many tokens from this one on
    int *places;     // (texts + 1,) room that keys of the texts before take: their padded lengths
    int *blocks;     // (texts + 1,) blocks of queries of the texts before
    state *qkv, *keys, *values, *context, *inner;
    float *y;
    struct rows states, inputs, inners;
};

enum finish { AS_IS, GELU, PLUS };

// ---- rows as inputs ---------------------------------------------------------------------------------------------

INLINE vec numbers(const void *from, int wide, int i) {
    return wide ? load((const float *)from + i) : read_state((const state *)from + i);
}

// One row of `count` numbers (float32 if `wide`, else states) into row `r` of `to`.
static void prepare(const struct layer *l, const void *from, int wide, int count, struct rows *to, int r) {
    if (!l->int8) {
        state *out = (state *)to->values + (ptrdiff_t)r * count;
        for (int i = 0; i < count; i += LANES) write_state(out + i, numbers(from, wide, i));
        return;
    }
    ints most = no_ints(), sum = no_ints();
    for (int i = 0; i < count; i += LANES) most = larger_magnitude(most, numbers(from, wide, i));
    float largest = magnitude(most);
    float step = (largest < 1e-12f ? 1e-12f : largest) / 127.0f; // NaN and infinity stay in the step
    whole *out = (whole *)to->values + (ptrdiff_t)r * count;
    for (int i = 0; i < count; i += LANES) {
        ints q = to_ints(numbers(from, wide, i) * set(1.0f / step));
        sum = add_ints(sum, q);
        store_whole(out + i, q);
    }
    to->step[r] = step;
    to->sum[r] = sum_of_ints(sum);
}

// LayerNorm of one row in place, and the row as an input where `to` is not null.
static void normalise(const struct layer *l, const struct norm *norm, float *row, struct rows *to, int r) {
    const int d = l->hidden;
    vec sum = set(0), squares = set(0);
    for (int i = 0; i < d; i += LANES) sum = sum + load(row + i);
    vec mean = set(sum_of(sum) / d);
    for (int i = 0; i < d; i += LANES) {
        vec x = load(row + i) - mean;
        squares = multiply_add(x, x, squares);
    }
    vec by = set(1.0f / sqrtf(sum_of(squares) / d + l->eps));
    for (int i = 0; i < d; i += LANES) {
        vec x = (load(row + i) - mean) * by;
        store(row + i, multiply_add(x, load(norm->weight + i), load(norm->bias + i)));
    }
    if (to) prepare(l, row, 1, d, to, r);
}

// ---- products ---------------------------------------------------------------------------------------------------

// Sums of a tile -> outputs of rows r.. and columns c.. : scaled, with bias, then as `finish` says. AS_IS and GELU give
// states (rows, outputs) at `to`; PLUS gives float32, with `plus` (rows, outputs) added.
INLINE void finish_tile(const struct layer *l, const struct matrix *m, const struct rows *in, const void *sums, int r,
                        int rows, int c, enum finish finish, void *to, const float *plus) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < PANEL; j += LANES) {
            vec x;
            const ptrdiff_t at = (ptrdiff_t)(r + i) * m->outputs + c + j;
            if (l->int8) {
                ints sum = load_ints((const int32_t *)sums + i * PANEL + j);
                if (ZERO_POINT) sum = subtract_ints(sum, all_ints(in->sum[r + i] * ZERO_POINT));
                vec scale = load(m->scale + c + j) * set(in->step[r + i]);
                x = multiply_add(to_floats(sum), scale, load(m->bias + c + j));
            } else {
                x = load((const float *)sums + i * PANEL + j) + load(m->bias + c + j);
            }
            if (finish == PLUS) {
                store((float *)to + at, x + load(plus + at));
            } else {
                write_state((state *)to + at, finish == GELU ? gelu(x) : x);
            }
        }
}

// What finish_tile is going to read and write comes from memory while the tile is multiplied.
INLINE void fetch_outputs(const struct matrix *m, int r, int rows, int c, enum finish finish, const void *to,
                          const float *plus) {
    const int size = finish == PLUS ? sizeof(float) : sizeof(state);
    for (int i = 0; i < rows; i++) {
        const ptrdiff_t at = (ptrdiff_t)(r + i) * m->outputs + c;
        fetch((const char *)to + at * size, PANEL * size);
        if (finish == PLUS) fetch(plus + at, PANEL * size);
    }
}

// Of one input of a product, and of one weight.
INLINE int input_bytes(const struct layer *l) {
    return l->int8 ? sizeof(whole) : sizeof(state);
}

INLINE int weight_bytes(const struct layer *l) {
    return l->int8 ? sizeof(int8_t) : sizeof(bf16);
}

// Rows and columns that one task multiplies: rows that stay in the second cache, or all of a short batch; and for a
// short batch so many panels that each thread has one range of the weights to read, else some tasks for each thread.
INLINE int block_rows(const struct layer *l, const struct matrix *m, int rows) {
    if (rows <= SHORT) return rows;
    int most = BLOCK_BYTES / (m->inputs * input_bytes(l));
    most = most < 48 ? 48 : most;
    int blocks = tiles_of(rows, most);
    return tiles_of(tiles_of(rows, blocks), TILE_ROWS) * TILE_ROWS;
}

INLINE int block_panels(const struct pass *p, const struct matrix *m, int rows) {
    const int panels = m->outputs / PANEL;
    if (rows <= SHORT) return tiles_of(panels, p->threads);
    int width = panels * tiles_of(rows, block_rows(p->layer, m, rows)) / (TASKS_PER_THREAD * p->threads);
    return width < 1 ? 1 : least(width, MOST_COLUMNS / PANEL);
}

INLINE int product_tasks(const struct pass *p, const struct matrix *m, int rows) {
    return tiles_of(rows, block_rows(p->layer, m, rows)) * tiles_of(m->outputs / PANEL, block_panels(p, m, rows));
}

static void product(struct pass *p, int task, const struct matrix *m, const struct rows *in, int rows,
                    enum finish finish, void *to, const float *plus) {
    const struct layer *l = p->layer;
    const int height = block_rows(l, m, rows), width = block_panels(p, m, rows);
    const int across = tiles_of(m->outputs / PANEL, width);
    const int first = task / across * height, last = least(first + height, rows);
    const int panels = m->outputs / PANEL, panel = task % across * width;
    const int end = least(panel + width, panels);
    const int tiles = tiles_of(last - first, TILE_ROWS);
    const int groups = m->inputs * weight_bytes(l) / GROUP_BYTES;
    const ptrdiff_t row_bytes = (ptrdiff_t)m->inputs * input_bytes(l);
    const int parts = tiles_of(groups * GROUP_BYTES * PANEL, PART_BYTES), pieces = (end - panel) * parts;
    int32_t sums[MOST_SUMS * PANEL] __attribute__((aligned(64)));
    for (int piece = 0; piece < pieces; piece++) {
        const int n = panel + piece / parts, part = piece % parts, complete = part + 1 == parts;
        const int start = border(groups, parts, part), count = border(groups, parts, part + 1) - start;
        const char *w = m->weight + ((ptrdiff_t)n * groups + start) * GROUP_BYTES * PANEL;
        for (int i = 0; i < tiles; i++) {
            int a = first + border(last - first, tiles, i), b = first + border(last - first, tiles, i + 1);
            int32_t *own = sums + (parts > 1 ? (a - first) * PANEL : 0);
            struct operands o = {.inputs = in->values + a * row_bytes + row_bytes / groups * start,
                                 .input_stride = row_bytes,
                                 .weights = w,
                                 .groups = count,
                                 .sums = own,
                                 .sum_stride = PANEL * sizeof(float),
                                 .add = part > 0};
            // of the next piece half is fetched beside each of the first two tiles, while this one is multiplied
            if (tiles > 1 && i < 2 && piece + 1 < pieces) o.ahead = w + (2 + i) * count * (GROUP_BYTES * PANEL / 2);
            if (complete) fetch_outputs(m, a, b - a, n * PANEL, finish, to, plus);
            (l->int8 ? rows_by_panel_int8 : rows_by_panel_bf16)(b - a, &o);
            if (complete) finish_tile(l, m, in, own, a, b - a, n * PANEL, finish, to, plus);
        }
    }
}

// ---- stages -----------------------------------------------------------------------------------------------------

static int index_of(const int *starts, int count, int place) { // the last start that is not behind the place
    int low = 0, high = count;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (starts[middle] <= place)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// The rows of one task of a stage that works row by row.
#define EACH_ROW(r, task, rows) for (int r = task * ROWS_PER_TASK, end = least(rows, r + ROWS_PER_TASK); r < end; r++)

static void read_states(struct pass *p, int task) {
    const int d = p->layer->hidden;
    EACH_ROW (r, task, p->tokens) prepare(p->layer, p->x + (ptrdiff_t)r * d, 1, d, &p->states, r);
}

static void make_qkv(struct pass *p, int task) {
    product(p, task, &p->layer->qkv, &p->states, p->tokens, AS_IS, p->qkv, NULL);
}

// Keys and values of a text that is one block of queries are packed where they are used.
INLINE int room(int length) {
    return length > BLOCK_QUERIES ? padded(length) : 0;
}

// One head of a text: where its queries begin in `qkv`, and where its packed keys and values do, if they have room.
struct view {
    const state *queries;
    state *keys, *values;
    int length, head;
};

static struct view view_of(const struct pass *p, int text, int h) {
    const int d = p->layer->hidden, head = d / p->layer->heads;
    const int length = (int)(p->offsets[text + 1] - p->offsets[text]);
    const ptrdiff_t at = (ptrdiff_t)p->places[text] * d + (ptrdiff_t)padded(length) * h * head;
    return (struct view){.queries = p->qkv + p->offsets[text] * 3 * d + h * head,
                         .keys = p->keys + at,
                         .values = p->values + at,
                         .length = length,
                         .head = head};
}

static void pack_view(const struct pass *p, const struct view *v) {
    const int d = p->layer->hidden;
    pack_keys(v->queries + d, 3 * d, v->length, v->head, v->keys);
    pack_values(v->queries + 2 * d, 3 * d, v->length, v->head, v->values);
}

static void pack(struct pass *p, int task) {
    const struct view v = view_of(p, task / p->layer->heads, task % p->layer->heads);
    if (room(v.length)) pack_view(p, &v);
}

static void attend_block(struct pass *p, int task) {
    const int d = p->layer->hidden, heads = p->layer->heads;
    const int text = index_of(p->blocks, p->texts, task / heads), h = task % heads;
    const int blocks = p->blocks[text + 1] - p->blocks[text], block = task / heads - p->blocks[text];
    struct view v = view_of(p, text, h);
    state own_keys[OWN_KEYS * MOST_HEAD], own_values[OWN_KEYS * MOST_HEAD];
    if (!room(v.length)) {
        v.keys = own_keys, v.values = own_values;
        pack_view(p, &v);
    }
    attend(v.queries, 3 * d, v.keys, v.values, v.length, v.head, border(v.length, blocks, block),
           border(v.length, blocks, block + 1), p->context + p->offsets[text] * d + h * v.head, d);
}

static void read_context(struct pass *p, int task) {
    const int d = p->layer->hidden;
    EACH_ROW (r, task, p->rows) prepare(p->layer, p->context + (ptrdiff_t)(p->first + r) * d, 0, d, &p->inputs, r);
}

static void add_attended(struct pass *p, int task) {
    const ptrdiff_t at = (ptrdiff_t)p->first * p->layer->hidden;
    product(p, task, &p->layer->attended, &p->inputs, p->rows, PLUS, p->y, p->x + at);
}

static void norm_attended(struct pass *p, int task) {
    EACH_ROW (r, task, p->rows)
        normalise(p->layer, &p->layer->attended_norm, p->y + (ptrdiff_t)r * p->layer->hidden, &p->inputs, r);
}

static void make_inner(struct pass *p, int task) {
    product(p, task, &p->layer->up, &p->inputs, p->rows, GELU, p->inner, NULL);
}

static void read_inner(struct pass *p, int task) {
    const int f = p->layer->ffn;
    EACH_ROW (r, task, p->rows) prepare(p->layer, p->inner + (ptrdiff_t)r * f, 0, f, &p->inners, r);
}

static void add_down(struct pass *p, int task) {
    product(p, task, &p->layer->down, &p->inners, p->rows, PLUS, p->x + (ptrdiff_t)p->first * p->layer->hidden, p->y);
}

static void norm_down(struct pass *p, int task) {
    EACH_ROW (r, task, p->rows)
        normalise(p->layer, &p->layer->down_norm, p->x + (ptrdiff_t)(p->first + r) * p->layer->hidden, NULL, r);
}

static void share(struct pass *p, int tasks, void (*work)(struct pass *, int)) {
    for (int task; (task = __atomic_fetch_add(&p->team->next, 1, __ATOMIC_RELAXED)) < tasks;) work(p, task);
    meet(p->team, p->threads);
}

static void attention_part(struct pass *p) {
    const struct layer *l = p->layer;
    share(p, tiles_of(p->tokens, ROWS_PER_TASK), read_states);
    share(p, product_tasks(p, &l->qkv, p->tokens), make_qkv);
    if (p->places[p->texts]) share(p, p->texts * l->heads, pack);
    share(p, p->blocks[p->texts] * l->heads, attend_block);
}

static void forward_part(struct pass *p) {
    const struct layer *l = p->layer;
    const int parts = tiles_of(p->rows, ROWS_PER_TASK);
    if (l->int8) {
        share(p, parts, read_context);
    } else { // states are read where they lie
        p->inputs.values = (char *)(p->context + (ptrdiff_t)p->first * l->hidden);
        p->inners.values = (char *)p->inner;
    }
    share(p, product_tasks(p, &l->attended, p->rows), add_attended);
    share(p, parts, norm_attended);
    share(p, product_tasks(p, &l->up, p->rows), make_inner);
    if (l->int8) share(p, parts, read_inner);
    share(p, product_tasks(p, &l->down, p->rows), add_down);
    share(p, parts, norm_down);
}

// What each thread of the team does.
static void run_layers(void *data) {
    struct pass mine = *(const struct pass *)data, *p = &mine;
    p->threads = omp_get_num_threads();
    for (int i = 0; i < p->layers; i++, p->layer++) {
        attention_part(p);
        for (p->first = 0; p->first < p->tokens; p->first += ROWS_AT_ONCE) {
            p->rows = least(p->tokens - p->first, ROWS_AT_ONCE);
            forward_part(p);
        }
    }
}

// ---- entry ------------------------------------------------------------------------------------------------------

static void *carve(uintptr_t *at, size_t bytes) {
    uintptr_t here = *at;
    *at += (bytes + 63) / 64 * 64;
    return (void *)here;
}

static void carve_rows(uintptr_t *at, struct rows *rows, const struct layer *l, size_t count, size_t width) {
    rows->values = carve(at, count * width * input_bytes(l));
    rows->step = carve(at, count * sizeof(float));
    rows->sum = carve(at, count * sizeof(int32_t));
}

// Places of everything in `scratch`; returns its size.
static size_t arrange(struct pass *p, char *scratch) {
    const struct layer *l = p->layer;
    const size_t d = l->hidden, n = p->tokens, some = least(p->tokens, ROWS_AT_ONCE);
    size_t places = 0;
    for (int i = 0; i < p->texts; i++) places += room((int)(p->offsets[i + 1] - p->offsets[i]));
    uintptr_t at = (uintptr_t)scratch;
    p->places = carve(&at, (p->texts + 1) * sizeof(int));
    p->blocks = carve(&at, (p->texts + 1) * sizeof(int));
    p->qkv = carve(&at, n * 3 * d * sizeof(state));
    p->keys = carve(&at, places * d * sizeof(state));
    p->values = carve(&at, places * d * sizeof(state));
    p->context = carve(&at, n * d * sizeof(state));
    p->inner = carve(&at, some * l->ffn * sizeof(state));
    p->y = carve(&at, some * d * sizeof(float));
    carve_rows(&at, &p->states, l, n, d);
    carve_rows(&at, &p->inputs, l, some, d);
    carve_rows(&at, &p->inners, l, l->int8 ? some : 0, l->ffn);
    return at - (uintptr_t)scratch;
}

// Bytes of scratch memory that threefold_layers wants for texts (offsets: texts + 1 numbers, from 0) end to end.
size_t threefold_scratch(const struct layer *layer, const int64_t *offsets, int texts) {
    struct pass p = {.layer = layer, .offsets = offsets, .texts = texts, .tokens = (int)offsets[texts]};
    return arrange(&p, NULL);
}

// Overwrites the states x (tokens, hidden) with those after `count` layers, all of the same sizes. `scratch` begins at
// a multiple of 64.
void threefold_layers(const struct layer *layers, int count, float *x, const int64_t *offsets, int texts, char *scratch,
                      int threads) {
    struct team team = {0};
    struct pass p = {.layer = layers,
                     .layers = count,
                     .x = x,
                     .offsets = offsets,
                     .texts = texts,
                     .tokens = (int)offsets[texts],
                     .team = &team};
    if (p.tokens == 0) return;
    arrange(&p, scratch);
    p.places[0] = p.blocks[0] = 0;
    for (int i = 0; i < texts; i++) {
        int length = (int)(offsets[i + 1] - offsets[i]);
        p.places[i + 1] = p.places[i] + room(length);
        p.blocks[i + 1] = p.blocks[i] + tiles_of(length, BLOCK_QUERIES);
    }
    GOMP_parallel(run_layers, &p, threads, 0);
}

// Four weights in int8 as the products want them: with their zero, and those of a step side by side after
// int8_of_step.
INLINE void store_int8(char *to, const char *weights) {
    for (int i = 0; i < 4; i++) to[i] = (char)(weights[sizeof(whole) == 1 ? i : i % 2 * 2 + i / 2] + ZERO_POINT);
}

// Weights (outputs, inputs) in int8 or bfloat16, row by row and at any address, into panels as product.h wants them.
void threefold_pack(const char *weight, int outputs, int inputs, int int8, char *to) {
    const ptrdiff_t row_bytes = (ptrdiff_t)inputs * (int8 ? sizeof(char) : sizeof(bf16));
    for (int panel = 0; panel < outputs; panel += PANEL)
        for (ptrdiff_t g = 0; g < row_bytes; g += GROUP_BYTES)
            for (int c = 0; c < PANEL; c++, to += GROUP_BYTES) {
                const char *from = weight + (panel + c) * row_bytes + g;
                if (int8)
                    store_int8(to, from);
                else
                    memcpy(to, from, GROUP_BYTES);
            }
}

// Of which sources this library was made: a hash that the build hands in.
const char *threefold_sources(void) {
    return SOURCES;
}
