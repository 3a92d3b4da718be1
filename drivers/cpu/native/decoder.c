/* A step: the rows of a batch through all layers, as one piece of work for a team of threads.

   Every phase's items are independent; a phase ends when all of them are finished. What is said of the order of sums
   in native.h holds because an item is a whole row or whole columns of all rows. */

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#define PHASES_PER_LAYER 10
#define PHASES_BESIDE 8
#define ALIGNMENT 64

/* Some rows that attend together: they are of one context and follow each other. */
typedef struct {
    int64_t first, count;
} group;

typedef struct {
    const model *m;
    const kernels *k;
    team *team;
    /* Buffers for `room` rows; each row starts on a cache line. */
    int64_t room, wide; /* `wide`: columns of the widest product's output */
    float *state, *normed, *qkv, *mixed, *result, *middle;
    uint8_t *values;
    int64_t values_stride; /* bytes */
    float *value_scale;
    int32_t *value_sums;
    group *groups;
    float *scores; /* a member's: [MAX_QUERIES, scores_room] */
    int64_t scores_room;
    float *best_value; /* a member's: [room] */
    int64_t *best_index;
} decoder;

typedef struct {
    decoder *d;
    const batch *b;
    int64_t groups;
    atomic_int through; /* a member has come to the end; then all items of all phases are finished */
} step;

static int64_t up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t padded_dim(const model *m) { return up(m->head_dim, LANES); }
static int64_t attention_size(const model *m) { return m->heads * m->head_dim; }
static int64_t row_size(int64_t columns) { return up(columns, LANES); }

static void release(decoder *d)
{
    free(d->state), free(d->normed), free(d->qkv), free(d->mixed), free(d->result), free(d->middle);
    free(d->values), free(d->value_scale), free(d->value_sums), free(d->groups), free(d->best_value), free(d->best_index);
    d->state = d->normed = d->qkv = d->mixed = d->result = d->middle = d->value_scale = d->best_value = NULL;
    d->values = NULL, d->value_sums = NULL, d->groups = NULL, d->best_index = NULL;
    d->room = 0;
}

static void *space(int64_t count, size_t size)
{
    return aligned_alloc(ALIGNMENT, (size_t)up(count * (int64_t)size, ALIGNMENT));
}

/* Have room for so many rows. 0: no memory. */
static int reserve(decoder *d, int64_t rows)
{
    if (rows <= d->room) return 1;
    const model *const m = d->m;
    release(d);
    d->state = space(rows * row_size(m->hidden), sizeof *d->state);
    d->normed = space(rows * row_size(m->hidden), sizeof *d->normed);
    d->qkv = space(rows * m->layer[0].qkv.columns, sizeof *d->qkv);
    d->mixed = space(rows * row_size(attention_size(m)), sizeof *d->mixed);
    d->result = space(rows * d->wide, sizeof *d->result);
    d->middle = space(rows * row_size(m->intermediate), sizeof *d->middle);
    d->values = space(rows * d->values_stride, sizeof *d->values);
    d->value_scale = space(rows * (d->values_stride / GROUP), sizeof *d->value_scale);
    d->value_sums = space(rows * (d->values_stride / GROUP), sizeof *d->value_sums);
    d->groups = space(rows, sizeof *d->groups);
    d->best_value = space(rows * team_size(d->team), sizeof *d->best_value);
    d->best_index = space(rows * team_size(d->team), sizeof *d->best_index);
    if (!d->state || !d->normed || !d->qkv || !d->mixed || !d->result || !d->middle || !d->values || !d->value_scale ||
        !d->value_sums || !d->groups || !d->best_value || !d->best_index) {
        release(d);
        return 0;
    }
    d->room = rows;
    return 1;
}

/* --- the phases -------------------------------------------------------------------------------------------------- */

#define EACH(items)                                                                                                      \
    for (int64_t first, end, i; (first = team_take(self, (items), &end)) >= 0;)                                          \
        for (i = first; i < end; i++)

/* Does a form want the sums of groups, and bytes with signs? */
static int grouped(const matrix *w) { return w->bits == 4 || w->group_kind != UNGROUPED; }

/* Bytes of a row that `make_input` writes. */
static int64_t input_size(const kernels *k, const matrix *w)
{
    return w->bits == 32 ? 0 : w->bits == 16 ? w->inputs * k->rounded_size : w->inputs;
}

/* How many scales a row of activations has for w, where a row has `stride` bytes. */
static int64_t scales_of(const matrix *w, int64_t stride) { return by_group(w) ? stride / GROUP : 1; }

/* Makes of row x [size] what a product with w takes. */
static void make_input(const kernels *k, const matrix *w, const float *x, int64_t size, void *values, float *scale,
                       int32_t *sums)
{
    if (w->bits == 16) k->round_row(x, size, w->inputs, values);
    if (by_group(w))
        k->quantise_groups(x, size, w->inputs, values, scale, sums);
    else if (w->bits <= 8)
        k->quantise(x, size, w->inputs, grouped(w), values, scale, grouped(w) ? sums : NULL);
}

static void prepare_row(const decoder *d, const matrix *w, const float *x, int64_t size, int64_t row)
{
    make_input(d->k, w, x, size, d->values + row * d->values_stride,
               d->value_scale + row * scales_of(w, d->values_stride), d->value_sums + row * (d->values_stride / GROUP));
}

/* The prepared rows as the input of a product; x [rows, stride] is what they were made of. */
static activations input_of(const decoder *d, const matrix *w, const float *x, int64_t stride, int64_t rows)
{
    if (w->bits == 32) return (activations){x, NULL, NULL, rows, stride * (int64_t)sizeof *x};
    return (activations){d->values, d->value_scale, d->value_sums, rows, d->values_stride};
}

static void multiply(member *self, const decoder *d, const matrix *w, const float *x, int64_t x_stride, int64_t rows,
                     float *out, int64_t stride)
{
    const activations a = input_of(d, w, x, x_stride, rows);
    const int64_t items = w->columns / ITEM;
    EACH(items) d->k->product(w, &a, i, out, stride);
    team_next(self, items);
}

/* Bytes of a key-value head's keys, or values, in a frame. */
static int64_t kv_head_size(const model *m, const batch *b)
{
    const int64_t vectors = LANES * padded_dim(m);
    return b->kv_bits == 8 ? vectors + LANES * (int64_t)sizeof(float) : vectors * b->kv_bits / 8;
}

/* Writes a row's key (`key`), or value, of one head to its slot of a frame; `bytes` has room for one. */
static void keep(const decoder *d, const batch *b, const float *x, uint8_t *to, int64_t slot, int key, int8_t *bytes)
{
    const int64_t dim = d->m->head_dim, padded = padded_dim(d->m);
    const int64_t first = key ? slot : slot * padded, step = key ? LANES : 1;
    if (b->kv_bits == 32) {
        for (int64_t i = 0; i < dim; i++) ((float *)to)[first + i * step] = x[i];
        return;
    }
    if (b->kv_bits == 16) {
        d->k->narrow(x, (uint16_t *)to + first, dim, step);
        return;
    }
    float *const scale = (float *)(to + LANES * padded) + slot;
    d->k->quantise(x, dim, padded, 1, bytes, scale, NULL);
    for (int64_t i = 0; i < padded; i++) ((int8_t *)to)[first + i * step] = bytes[i];
}

/* Norms and rotates the row's heads, and writes its key and value to their frame. */
static void place(const decoder *d, const batch *b, int64_t at, int64_t row, int8_t *bytes)
{
    const model *const m = d->m;
    const layer *const l = &m->layer[at];
    const int64_t position = b->position[row], dim = m->head_dim, half = m->rotated / 2, size = kv_head_size(m, b);
    float *const query = d->qkv + row * l->qkv.columns, *const key = query + m->heads * dim,
                 *const value = key + m->kv_heads * dim;
    const float *const cosine = m->cosine + position * half, *const sine = m->sine + position * half;
    for (int64_t h = 0; h < m->heads + m->kv_heads; h++) {
        const float *const weight = h < m->heads ? l->query_norm : l->key_norm;
        if (weight) d->k->norm(query + h * dim, weight, query + h * dim, dim, m->norm_epsilon);
        d->k->rotate(query + h * dim, cosine, sine, m->rotated);
    }
    uint8_t *const frame = b->slab + b->table[row][position / LANES] * b->frame_size + at * 2 * m->kv_heads * size;
    for (int64_t h = 0; h < m->kv_heads; h++) {
        keep(d, b, key + h * dim, frame + h * size, position % LANES, 1, bytes);
        keep(d, b, value + h * dim, frame + (m->kv_heads + h) * size, position % LANES, 0, bytes);
    }
}

/* Attention of a group's rows with one key-value head. */
static void attend(const decoder *d, const batch *b, int64_t at, const group *rows, int64_t kv_head, float *scores)
{
    const model *const m = d->m;
    const layer *const l = &m->layer[at];
    const int64_t shared = m->heads / m->kv_heads, dim = m->head_dim, size = kv_head_size(m, b);
    const int64_t keys = (at * 2 * m->kv_heads + kv_head) * size, values = keys + m->kv_heads * size;
    const float *query[MAX_QUERIES];
    float *out[MAX_QUERIES];
    int64_t begin[MAX_QUERIES], end[MAX_QUERIES], count = 0;
    for (int64_t r = rows->first; r < rows->first + rows->count; r++)
        for (int64_t h = kv_head * shared; h < (kv_head + 1) * shared; h++) {
            query[count] = d->qkv + r * l->qkv.columns + h * dim;
            out[count] = d->mixed + r * row_size(attention_size(m)) + h * dim;
            end[count] = b->position[r];
            begin[count] = l->window && end[count] >= l->window ? end[count] - l->window + 1 : 0;
            if (++count < MAX_QUERIES && !(r == rows->first + rows->count - 1 && h == (kv_head + 1) * shared - 1))
                continue;
            d->k->attend(query, out, begin, end, count, b, b->table[r], keys, values, dim, m->attention_scale,
                         m->attention_softcap, scores, d->scores_room);
            count = 0;
        }
}

/* 0: the step is given up. */
static int await_layer(const batch *b, int64_t at)
{
    while (!(b->stop && *b->stop)) {
        if (!b->ready || *b->ready > at) return 1;
        nap();
    }
    return 0;
}

/* Members may be a layer apart, and one that was late must not take back what another has told. */
static void tell_layer(const batch *b, int64_t at)
{
    if (b->layer && *b->layer < at) *b->layer = at;
}

static void run_step(member *self, void *argument)
{
    step *const s = argument;
    decoder *const d = s->d;
    const model *const m = d->m;
    const kernels *const k = d->k;
    const batch *const b = s->b;
    const int64_t rows = b->rows, hidden = row_size(m->hidden), mixed = row_size(attention_size(m)),
                  middle = row_size(m->intermediate);
    float *const scores = d->scores + self->index * MAX_QUERIES * d->scores_room;

    EACH(rows) {
        float *const x = d->state + i * hidden;
        k->embed((const uint8_t *)m->embedding + b->token[i] * m->hidden * m->embedding_bits / 8, m->embedding_bits,
                 m->embedding_scale, x, m->hidden);
        k->norm(x, m->layer[0].before_attention, d->normed + i * hidden, m->hidden, m->norm_epsilon);
        prepare_row(d, &m->layer[0].qkv, d->normed + i * hidden, m->hidden, i);
    }
    team_next(self, rows);
    for (int64_t at = 0; at < m->layers; at++) {
        if (!await_layer(b, at)) return; /* whoever has not seen it in time does this layer alone */
        tell_layer(b, at);
        const layer *const l = &m->layer[at];
        multiply(self, d, &l->qkv, d->normed, hidden, rows, d->qkv, l->qkv.columns);
        EACH(rows) place(d, b, at, i, (int8_t *)scores);
        team_next(self, rows);
        EACH(s->groups * m->kv_heads) attend(d, b, at, &d->groups[i / m->kv_heads], i % m->kv_heads, scores);
        team_next(self, s->groups * m->kv_heads);
        EACH(rows) prepare_row(d, &l->out, d->mixed + i * mixed, attention_size(m), i);
        team_next(self, rows);
        multiply(self, d, &l->out, d->mixed, mixed, rows, d->result, d->wide);
        EACH(rows) {
            float *const x = d->state + i * hidden, *const y = d->result + i * d->wide, *const z = d->normed + i * hidden;
            if (l->after_attention) k->norm(y, l->after_attention, y, m->hidden, m->norm_epsilon);
            k->add(x, y, m->hidden);
            k->norm(x, l->before_mlp, z, m->hidden, m->norm_epsilon);
            prepare_row(d, &l->gate_up, z, m->hidden, i);
        }
        team_next(self, rows);
        const activations a = input_of(d, &l->gate_up, d->normed, hidden, rows);
        const int64_t items = l->gate_up.columns / ITEM;
        EACH(items) k->gated_product(&l->gate_up, &a, i, d->middle, middle, m->activation);
        team_next(self, items);
        EACH(rows) prepare_row(d, &l->down, d->middle + i * middle, m->intermediate, i);
        team_next(self, rows);
        multiply(self, d, &l->down, d->middle, middle, rows, d->result, d->wide);
        const matrix *const next = at + 1 < m->layers ? &m->layer[at + 1].qkv : NULL;
        EACH(rows) {
            float *const x = d->state + i * hidden, *const y = d->result + i * d->wide, *const z = d->normed + i * hidden;
            if (l->after_mlp) k->norm(y, l->after_mlp, y, m->hidden, m->norm_epsilon);
            k->add(x, y, m->hidden);
            if (next) {
                k->norm(x, m->layer[at + 1].before_attention, z, m->hidden, m->norm_epsilon);
                prepare_row(d, next, z, m->hidden, i);
            }
        }
        team_next(self, rows);
    }
    tell_layer(b, m->layers);
    EACH(b->outputs) {
        float *const z = d->normed + i * hidden;
        k->norm(d->state + b->output[i] * hidden, m->last_norm, z, m->hidden, m->norm_epsilon);
        prepare_row(d, &m->head, z, m->hidden, i);
        for (int64_t t = 0; t < team_size(d->team); t++) {
            d->best_value[t * d->room + i] = -__builtin_inff();
            d->best_index[t * d->room + i] = 0;
        }
    }
    team_next(self, b->outputs);
    const activations a = input_of(d, &m->head, d->normed, hidden, b->outputs);
    const int64_t items = up(m->vocabulary, ITEM) / ITEM;
    EACH(items) {
        if (b->logits)
            k->product(&m->head, &a, i, b->logits, b->logits_stride);
        else
            k->best_product(&m->head, &a, i, m->vocabulary, m->logit_softcap, d->best_value + self->index * d->room,
                            d->best_index + self->index * d->room);
    }
    team_next(self, items);
    EACH(b->outputs) {
        if (b->logits) {
            if (m->logit_softcap > 0.0f) k->cap(b->logits + i * b->logits_stride, m->vocabulary, m->logit_softcap);
            continue;
        }
        float value = d->best_value[i];
        int64_t index = d->best_index[i];
        for (int64_t t = 1; t < team_size(d->team); t++) {
            const float v = d->best_value[t * d->room + i];
            const int64_t other = d->best_index[t * d->room + i];
            if (value != value) break;
            if (!(v <= value) || (v == value && other < index)) value = v, index = other;
        }
        b->best[i] = value - value == 0.0f ? index : -1;
    }
    atomic_store_explicit(&s->through, 1, memory_order_relaxed);
}

/* --- what Python calls ------------------------------------------------------------------------------------------- */

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

EXPORT int64_t native_abi(void) { return ABI; }

/* The name of the instruction set that would be used: the best, or `name` if it is there, else NULL. */
EXPORT const char *native_isa(const char *name)
{
    const kernels *const k = choose_kernels(name);
    return k ? k->name : NULL;
}

/* One product with rows [rows, size], for tests: out [rows, columns of w]. 0, or -1: no memory or no such instruction set. */
EXPORT int native_product(const matrix *w, const float *x, int64_t rows, int64_t size, float *out, const char *isa)
{
    const kernels *const k = choose_kernels(isa);
    const int64_t stride = k ? up(input_size(k, w), ALIGNMENT) : 0;
    void *const values = space(rows * stride + 1, 1);
    float *const scale = space(rows * (stride / GROUP + 1), sizeof *scale);
    int32_t *const sums = space(rows * (stride / GROUP) + 1, sizeof *sums);
    activations a = {values, scale, sums, rows, stride};
    if (w->bits == 32) a.values = x, a.stride = size * (int64_t)sizeof *x;
    const int done = k && values && scale && sums;
    if (done) {
        for (int64_t row = 0; row < rows; row++)
            make_input(k, w, x + row * size, size, (uint8_t *)values + row * stride, scale + row * scales_of(w, stride),
                       sums + row * (stride / GROUP));
        for (int64_t item = 0; item < w->columns / ITEM; item++) k->product(w, &a, item, out, w->columns);
    }
    free(values), free(scale), free(sums);
    return done ? 0 : -1;
}

EXPORT void native_close(decoder *d)
{
    if (!d) return;
    release(d);
    free(d->scores);
    if (d->team) team_stop(d->team);
    free(d);
}

/* A decoder for a model (which stays the caller's, and in place), with a team of `threads`. NULL: no memory, no such
   instruction set, or query heads that cannot share the key-value heads evenly. */
EXPORT decoder *native_open(const model *m, int64_t threads, const char *isa)
{
    if (m->kv_heads < 1 || m->heads < m->kv_heads || m->heads % m->kv_heads) return NULL;
    const kernels *const k = choose_kernels(isa);
    decoder *const d = k ? calloc(1, sizeof *d) : NULL;
    if (!d) return NULL;
    d->m = m;
    d->k = k;
    int64_t input = most(1, input_size(k, &m->head)); /* bytes */
    for (int64_t i = 0; i < m->layers; i++) {
        const layer *const l = &m->layer[i];
        d->wide = most(d->wide, most(l->out.columns, l->down.columns));
        input = most(input, most(input_size(k, &l->qkv), input_size(k, &l->out)));
        input = most(input, most(input_size(k, &l->gate_up), input_size(k, &l->down)));
    }
    d->values_stride = up(input, ALIGNMENT);
    d->scores_room = most(up(m->context, LANES) + LANES, padded_dim(m)); /* a vector of KV is made there too */
    d->team = team_start(threads, m->layers * PHASES_PER_LAYER + PHASES_BESIDE);
    d->scores = space(threads * MAX_QUERIES * d->scores_room, sizeof *d->scores);
    if (!d->team || !d->scores || !reserve(d, 1)) {
        native_close(d);
        return NULL;
    }
    return d;
}

/* Compute a batch whose tokens, positions and frames the caller has checked. 0, or -1: no memory (nothing was computed), or
   1: given up, as was asked (KV of its rows may be written, in part). */
EXPORT int native_step(decoder *d, const batch *b)
{
    if (b->rows == 0) return 0;
    if (!reserve(d, most(b->rows, b->outputs))) return -1;
    const int64_t together = most(1, MAX_QUERIES / (d->m->heads / d->m->kv_heads));
    step s = {.d = d, .b = b};
    for (int64_t row = 0; row < b->rows; row++) {
        group *const last = s.groups ? &d->groups[s.groups - 1] : NULL;
        if (last && last->count < together && b->table[row] == b->table[last->first])
            last->count++;
        else
            d->groups[s.groups++] = (group){row, 1};
    }
    team_run(d->team, run_step, &s);
    return atomic_load_explicit(&s.through, memory_order_relaxed) ? 0 : 1;
}
