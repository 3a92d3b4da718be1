/* The decoder as Python calls it (library.py): opening, stepping and closing one, and its buffers. */

#include <stdlib.h>

#include "decoder.h"

#define ALIGNMENT 64

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* --- buffers ----------------------------------------------------------------------------------------------------- */

static void *space(int64_t count, size_t size)
{
    return aligned_alloc(ALIGNMENT, (size_t)up(count * (int64_t)size, ALIGNMENT));
}

static void release(buffers *rows)
{
    free(rows->state), free(rows->normed), free(rows->qkv), free(rows->mixed), free(rows->result), free(rows->middle);
    free(rows->values), free(rows->value_scale), free(rows->value_sums);
    free(rows->groups), free(rows->best_value), free(rows->best_index);
    *rows = (buffers){0};
}

/* Have room for `count` rows. 0: no memory. */
static int reserve(decoder *decoder, int64_t count)
{
    buffers *const rows = &decoder->rows;
    if (count <= rows->rows) return 1;
    const model *const model = decoder->model;
    const int64_t hidden = row_size(model->hidden), groups = decoder->values_stride / GROUP;
    release(rows);
    rows->state = space(count * hidden, sizeof *rows->state);
    rows->normed = space(count * hidden, sizeof *rows->normed);
    rows->qkv = space(count * model->layer[0].qkv.columns, sizeof *rows->qkv);
    rows->mixed = space(count * row_size(attention_size(model)), sizeof *rows->mixed);
    rows->result = space(count * decoder->widest, sizeof *rows->result);
    rows->middle = space(count * row_size(model->intermediate), sizeof *rows->middle);
    rows->values = space(count * decoder->values_stride, sizeof *rows->values);
    rows->value_scale = space(count * groups, sizeof *rows->value_scale);
    rows->value_sums = space(count * groups, sizeof *rows->value_sums);
    rows->groups = space(count, sizeof *rows->groups);
    rows->best_value = space(count * team_size(decoder->team), sizeof *rows->best_value);
    rows->best_index = space(count * team_size(decoder->team), sizeof *rows->best_index);
    if (!rows->state || !rows->normed || !rows->qkv || !rows->mixed || !rows->result || !rows->middle || !rows->values ||
        !rows->value_scale || !rows->value_sums || !rows->groups || !rows->best_value || !rows->best_index) {
        release(rows);
        return 0;
    }
    rows->rows = count;
    return 1;
}

/* --- what Python calls ------------------------------------------------------------------------------------------- */

EXPORT int64_t native_abi(void) { return ABI; }

/* The name of the instruction set that would be used: the best, or `name` if it is there, else NULL. */
EXPORT const char *native_isa(const char *name)
{
    const kernels *const kernels = choose_kernels(name);
    return kernels ? kernels->name : NULL;
}

/* One product with rows [count, size], for tests: out [count, columns of the weights]. 0, or -1: no memory or no such
   instruction set. */
EXPORT int native_product(const matrix *weights, const float *rows, int64_t count, int64_t size, float *out,
                          const char *isa)
{
    const kernels *const kernels = choose_kernels(isa);
    const int64_t stride = kernels ? up(input_size(kernels, weights), ALIGNMENT) : 0;
    uint8_t *const values = space(count * stride + 1, 1);
    float *const scale = space(count * (stride / GROUP + 1), sizeof *scale);
    int32_t *const sums = space(count * (stride / GROUP) + 1, sizeof *sums);
    activations input = {values, scale, sums, count, stride};
    if (weights->bits == 32) input.values = rows, input.stride = size * (int64_t)sizeof *rows;
    const int done = kernels && values && scale && sums;
    if (done) {
        for (int64_t row = 0; row < count; row++)
            make_input(kernels, weights, rows + row * size, size, values + row * stride,
                       scale + row * scales_of(weights, stride), sums + row * (stride / GROUP));
        for (int64_t item = 0; item < weights->columns / ITEM; item++)
            kernels->product(weights, &input, item, out, weights->columns);
    }
    free(values), free(scale), free(sums);
    return done ? 0 : -1;
}

EXPORT void native_close(decoder *decoder)
{
    if (!decoder) return;
    release(&decoder->rows);
    free(decoder->scores);
    if (decoder->team) team_stop(decoder->team);
    free(decoder);
}

/* A decoder for a model (which stays the caller's, and in place), with a team of `threads`. NULL: no memory, no such
   instruction set, or query heads that cannot share the key-value heads evenly. */
EXPORT decoder *native_open(const model *model, int64_t threads, const char *isa)
{
    if (model->kv_heads < 1 || model->heads < model->kv_heads || model->heads % model->kv_heads) return NULL;
    const kernels *const kernels = choose_kernels(isa);
    decoder *const made = kernels ? calloc(1, sizeof *made) : NULL;
    if (!made) return NULL;
    made->model = model;
    made->kernels = kernels;
    int64_t input = most(1, input_size(kernels, &model->head)); /* bytes */
    for (int64_t i = 0; i < model->layers; i++) {
        const layer *const layer = &model->layer[i];
        made->widest = most(made->widest, most(layer->out.columns, layer->down.columns));
        input = most(input, most(input_size(kernels, &layer->qkv), input_size(kernels, &layer->out)));
        input = most(input, most(input_size(kernels, &layer->gate_up), input_size(kernels, &layer->down)));
    }
    made->values_stride = up(input, ALIGNMENT);
    made->scores_stride =
        most(up(model->context, LANES) + LANES, padded_dim(model)); /* a vector of KV is made there too */
    made->team = team_start(threads, model->layers * PHASES_PER_LAYER + PHASES_BESIDE);
    made->scores = space(threads * MAX_QUERIES * made->scores_stride, sizeof *made->scores);
    if (!made->team || !made->scores || !reserve(made, 1)) {
        native_close(made);
        return NULL;
    }
    return made;
}

/* Compute a batch whose tokens, positions and frames the caller has checked. 0, or -1: no memory (nothing was computed),
   or 1: given up, as was asked (KV of its rows may be written, in part). */
EXPORT int native_step(decoder *decoder, const batch *batch)
{
    if (batch->rows == 0) return 0;
    if (!reserve(decoder, most(batch->rows, batch->outputs))) return -1;
    const int64_t together = most(1, MAX_QUERIES / (decoder->model->heads / decoder->model->kv_heads));
    group *const groups = decoder->rows.groups;
    step work = {.decoder = decoder, .batch = batch};
    for (int64_t row = 0; row < batch->rows; row++) {
        group *const last = work.groups ? &groups[work.groups - 1] : NULL;
        if (last && last->count < together && batch->table[row] == batch->table[last->first])
            last->count++;
        else
            groups[work.groups++] = (group){row, 1};
    }
    team_run(decoder->team, run_step, &work);
    return atomic_load_explicit(&work.through, memory_order_relaxed) ? 0 : 1;
}
