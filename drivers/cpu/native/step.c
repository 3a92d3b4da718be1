/* A step: the rows of a batch through all layers, as one piece of work for a team of threads.

   Every phase's items are independent; a phase ends when all of them are finished. What native.h says of the order of
   sums holds because an item is a whole row, or whole columns of all rows. */

#include "decoder.h"

/* For each `item` of a phase's `items` that this member takes. */
#define EACH(item, items)                                                                                                \
    for (int64_t first, end, item; (first = team_take(self, (items), &end)) >= 0;)                                       \
        for (item = first; item < end; item++)

/* --- products ---------------------------------------------------------------------------------------------------- */

static void prepare_row(const decoder *decoder, const matrix *weights, const float *from, int64_t size, int64_t row)
{
    const buffers *const rows = &decoder->rows;
    const int64_t stride = decoder->values_stride;
    make_input(decoder->kernels, weights, from, size, rows->values + row * stride,
               rows->value_scale + row * scales_of(weights, stride), rows->value_sums + row * (stride / GROUP));
}

/* The `count` prepared rows as the input of a product; from [count, stride] is what they were made of. */
static activations input_of(const decoder *decoder, const matrix *weights, const float *from, int64_t stride,
                            int64_t count)
{
    const buffers *const rows = &decoder->rows;
    if (weights->bits == 32) return (activations){from, NULL, NULL, count, stride * (int64_t)sizeof *from};
    return (activations){rows->values, rows->value_scale, rows->value_sums, count, decoder->values_stride};
}

static void multiply(member *self, const decoder *decoder, const matrix *weights, const float *from, int64_t from_stride,
                     int64_t count, float *out, int64_t out_stride)
{
    const activations input = input_of(decoder, weights, from, from_stride, count);
    const int64_t items = weights->columns / ITEM;
    EACH(item, items) decoder->kernels->product(weights, &input, item, out, out_stride);
    team_next(self, items);
}

/* --- attention --------------------------------------------------------------------------------------------------- */

/* Bytes of a key-value head's keys, or values, in a frame. */
static int64_t kv_head_size(const model *model, const batch *batch)
{
    const int64_t vectors = LANES * padded_dim(model);
    return batch->kv_bits == 8 ? vectors + LANES * (int64_t)sizeof(float) : vectors * batch->kv_bits / 8;
}

/* Writes a row's key (`is_key`), or value, of one head to its slot of a frame; `bytes` has room for one. */
static void keep(const decoder *decoder, const batch *batch, const float *vector, uint8_t *to, int64_t slot, int is_key,
                 int8_t *bytes)
{
    const int64_t dim = decoder->model->head_dim, padded = padded_dim(decoder->model);
    const int64_t first = is_key ? slot : slot * padded, stride = is_key ? LANES : 1;
    if (batch->kv_bits == 32) {
        for (int64_t i = 0; i < dim; i++) ((float *)to)[first + i * stride] = vector[i];
        return;
    }
    if (batch->kv_bits == 16) {
        decoder->kernels->narrow(vector, (uint16_t *)to + first, dim, stride);
        return;
    }
    float *const scale = (float *)(to + LANES * padded) + slot;
    decoder->kernels->quantise(vector, dim, padded, 1, bytes, scale, NULL);
    for (int64_t i = 0; i < padded; i++) ((int8_t *)to)[first + i * stride] = bytes[i];
}

/* Norms and rotates the row's heads, and writes its key and value to their frame. */
static void place(const decoder *decoder, const batch *batch, int64_t number, int64_t row, int8_t *bytes)
{
    const model *const model = decoder->model;
    const kernels *const kernels = decoder->kernels;
    const layer *const layer = &model->layer[number];
    const int64_t position = batch->position[row], slot = position % LANES;
    const int64_t dim = model->head_dim, half = model->rotated / 2, size = kv_head_size(model, batch);
    float *const query = decoder->rows.qkv + row * layer->qkv.columns;
    float *const key = query + model->heads * dim, *const value = key + model->kv_heads * dim;
    const float *const cosine = model->cosine + position * half, *const sine = model->sine + position * half;
    for (int64_t head = 0; head < model->heads + model->kv_heads; head++) {
        float *const vector = query + head * dim;
        const float *const weight = head < model->heads ? layer->query_norm : layer->key_norm;
        if (weight) kernels->norm(vector, weight, vector, dim, model->norm_epsilon);
        kernels->rotate(vector, cosine, sine, model->rotated);
    }
    const int64_t frame = batch->table[row][position / LANES];
    uint8_t *const keys = batch->slab + frame * batch->frame_size + number * 2 * model->kv_heads * size;
    uint8_t *const values = keys + model->kv_heads * size;
    for (int64_t head = 0; head < model->kv_heads; head++) {
        keep(decoder, batch, key + head * dim, keys + head * size, slot, 1, bytes);
        keep(decoder, batch, value + head * dim, values + head * size, slot, 0, bytes);
    }
}

/* Attention of a group's rows with one key-value head. */
static void attend(const decoder *decoder, const batch *batch, int64_t number, const group *group, int64_t kv_head,
                   float *scores)
{
    const model *const model = decoder->model;
    const layer *const layer = &model->layer[number];
    const int64_t shared = model->heads / model->kv_heads, dim = model->head_dim, size = kv_head_size(model, batch);
    const int64_t keys = (number * 2 * model->kv_heads + kv_head) * size, values = keys + model->kv_heads * size;
    const int64_t last_row = group->first + group->count - 1, last_head = (kv_head + 1) * shared - 1;
    const float *query[MAX_QUERIES];
    float *out[MAX_QUERIES];
    int64_t begin[MAX_QUERIES], end[MAX_QUERIES], count = 0;
    for (int64_t row = group->first; row <= last_row; row++)
        for (int64_t head = kv_head * shared; head <= last_head; head++) {
            query[count] = decoder->rows.qkv + row * layer->qkv.columns + head * dim;
            out[count] = decoder->rows.mixed + row * row_size(attention_size(model)) + head * dim;
            end[count] = batch->position[row];
            begin[count] = layer->window && end[count] >= layer->window ? end[count] - layer->window + 1 : 0;
            if (++count < MAX_QUERIES && !(row == last_row && head == last_head)) continue;
            decoder->kernels->attend(query, out, begin, end, count, batch, batch->table[row], keys, values, dim,
                                     model->attention_scale, model->attention_softcap, scores, decoder->scores_stride);
            count = 0;
        }
}

/* --- the phases, in their order ---------------------------------------------------------------------------------- */

/* Embeds the tokens, and prepares them for the first layer. */
static void embed(member *self, const step *step)
{
    const decoder *const decoder = step->decoder;
    const model *const model = decoder->model;
    const kernels *const kernels = decoder->kernels;
    const batch *const batch = step->batch;
    const int64_t count = batch->rows, hidden = row_size(model->hidden);
    EACH(row, count) {
        float *const state = decoder->rows.state + row * hidden, *const normed = decoder->rows.normed + row * hidden;
        const int64_t at = batch->token[row] * model->hidden * model->embedding_bits / 8;
        kernels->embed((const uint8_t *)model->embedding + at, model->embedding_bits, model->embedding_scale, state,
                       model->hidden);
        kernels->norm(state, model->layer[0].before_attention, normed, model->hidden, model->norm_epsilon);
        prepare_row(decoder, &model->layer[0].qkv, normed, model->hidden, row);
    }
    team_next(self, count);
}

/* A layer's attention, from prepared rows to `result`. */
static void attention(member *self, const step *step, int64_t number)
{
    const decoder *const decoder = step->decoder;
    const buffers *const rows = &decoder->rows;
    const model *const model = decoder->model;
    const batch *const batch = step->batch;
    const layer *const layer = &model->layer[number];
    const int64_t count = batch->rows, size = attention_size(model), items = step->groups * model->kv_heads;
    float *const scores = decoder->scores + self->index * MAX_QUERIES * decoder->scores_stride;
    multiply(self, decoder, &layer->qkv, rows->normed, row_size(model->hidden), count, rows->qkv, layer->qkv.columns);
    EACH(row, count) place(decoder, batch, number, row, (int8_t *)scores);
    team_next(self, count);
    EACH(item, items)
        attend(decoder, batch, number, &rows->groups[item / model->kv_heads], item % model->kv_heads, scores);
    team_next(self, items);
    EACH(row, count) prepare_row(decoder, &layer->out, rows->mixed + row * row_size(size), size, row);
    team_next(self, count);
    multiply(self, decoder, &layer->out, rows->mixed, row_size(size), count, rows->result, decoder->widest);
}

/* A layer's gated products, from prepared rows to `result`. */
static void gated(member *self, const step *step, int64_t number)
{
    const decoder *const decoder = step->decoder;
    const buffers *const rows = &decoder->rows;
    const model *const model = decoder->model;
    const layer *const layer = &model->layer[number];
    const int64_t count = step->batch->rows, middle = row_size(model->intermediate);
    const activations input = input_of(decoder, &layer->gate_up, rows->normed, row_size(model->hidden), count);
    const int64_t items = layer->gate_up.columns / ITEM;
    EACH(item, items)
        decoder->kernels->gated_product(&layer->gate_up, &input, item, rows->middle, middle, model->activation);
    team_next(self, items);
    EACH(row, count) prepare_row(decoder, &layer->down, rows->middle + row * middle, model->intermediate, row);
    team_next(self, count);
    multiply(self, decoder, &layer->down, rows->middle, middle, count, rows->result, decoder->widest);
}

/* Adds `result`, normed by `after` if there is such a norm, to the state, which is normed by `before` and prepared for a
   product with `next`; NULL: nothing comes after it. */
static void add_result(member *self, const step *step, const float *after, const float *before, const matrix *next)
{
    const decoder *const decoder = step->decoder;
    const model *const model = decoder->model;
    const kernels *const kernels = decoder->kernels;
    const int64_t count = step->batch->rows, hidden = row_size(model->hidden);
    EACH(row, count) {
        float *const state = decoder->rows.state + row * hidden, *const normed = decoder->rows.normed + row * hidden;
        float *const result = decoder->rows.result + row * decoder->widest;
        if (after) kernels->norm(result, after, result, model->hidden, model->norm_epsilon);
        kernels->add(state, result, model->hidden);
        if (next) {
            kernels->norm(state, before, normed, model->hidden, model->norm_epsilon);
            prepare_row(decoder, next, normed, model->hidden, row);
        }
    }
    team_next(self, count);
}

/* Prepares the rows whose logits are wanted; none of them has a greatest logit yet. */
static void prepare_outputs(member *self, const step *step)
{
    const decoder *const decoder = step->decoder;
    const buffers *const rows = &decoder->rows;
    const model *const model = decoder->model;
    const batch *const batch = step->batch;
    const int64_t hidden = row_size(model->hidden);
    EACH(output, batch->outputs) {
        float *const normed = rows->normed + output * hidden;
        const float *const state = rows->state + batch->output[output] * hidden;
        decoder->kernels->norm(state, model->last_norm, normed, model->hidden, model->norm_epsilon);
        prepare_row(decoder, &model->head, normed, model->hidden, output);
        for (int64_t member = 0; member < team_size(decoder->team); member++) {
            rows->best_value[member * rows->rows + output] = -__builtin_inff();
            rows->best_index[member * rows->rows + output] = 0;
        }
    }
    team_next(self, batch->outputs);
}

/* Logits of the outputs, or the greatest that each member has seen. */
static void logits(member *self, const step *step)
{
    const decoder *const decoder = step->decoder;
    const buffers *const rows = &decoder->rows;
    const model *const model = decoder->model;
    const kernels *const kernels = decoder->kernels;
    const batch *const batch = step->batch;
    const activations input = input_of(decoder, &model->head, rows->normed, row_size(model->hidden), batch->outputs);
    const int64_t items = up(model->vocabulary, ITEM) / ITEM;
    float *const best_value = rows->best_value + self->index * rows->rows;
    int64_t *const best_index = rows->best_index + self->index * rows->rows;
    EACH(item, items) {
        if (batch->logits)
            kernels->product(&model->head, &input, item, batch->logits, batch->logits_stride);
        else
            kernels->best_product(&model->head, &input, item, model->vocabulary, model->logit_softcap, best_value,
                                  best_index);
    }
    team_next(self, items);
}

/* The index of an output's greatest logit over all members, the first of equal ones; -1 if it is not finite. */
static int64_t greatest_of_all(const decoder *decoder, int64_t output)
{
    const buffers *const rows = &decoder->rows;
    float best = rows->best_value[output];
    int64_t index = rows->best_index[output];
    for (int64_t member = 1; member < team_size(decoder->team); member++) {
        const float value = rows->best_value[member * rows->rows + output];
        const int64_t other = rows->best_index[member * rows->rows + output];
        if (best != best) break;
        if (!(value <= best) || (value == best && other < index)) best = value, index = other;
    }
    return best - best == 0.0f ? index : -1;
}

/* Finishes the logits of the outputs, or finds their greatest. */
static void finish_outputs(member *self, const step *step)
{
    const decoder *const decoder = step->decoder;
    const model *const model = decoder->model;
    const batch *const batch = step->batch;
    EACH(output, batch->outputs) {
        if (!batch->logits)
            batch->best[output] = greatest_of_all(decoder, output);
        else if (model->logit_softcap > 0.0f)
            decoder->kernels->cap(batch->logits + output * batch->logits_stride, model->vocabulary, model->logit_softcap);
    }
}

/* --- all of it --------------------------------------------------------------------------------------------------- */

/* 0: the step is given up. */
static int await_layer(const batch *batch, int64_t number)
{
    while (!(batch->stop && *batch->stop)) {
        if (!batch->ready || *batch->ready > number) return 1;
        nap();
    }
    return 0;
}

/* Members may be a layer apart, and one that was late must not take back what another has told. */
static void tell_layer(const batch *batch, int64_t number)
{
    if (batch->layer && *batch->layer < number) *batch->layer = number;
}

void run_step(member *self, void *argument)
{
    step *const step = argument;
    const model *const model = step->decoder->model;
    embed(self, step);
    for (int64_t number = 0; number < model->layers; number++) {
        /* A member that has not seen in time that the step is given up does this layer alone. */
        if (!await_layer(step->batch, number)) return;
        tell_layer(step->batch, number);
        const layer *const layer = &model->layer[number], *const next = number + 1 < model->layers ? layer + 1 : NULL;
        attention(self, step, number);
        add_result(self, step, layer->after_attention, layer->before_mlp, &layer->gate_up);
        gated(self, step, number);
        add_result(self, step, layer->after_mlp, next ? next->before_attention : NULL, next ? &next->qkv : NULL);
    }
    tell_layer(step->batch, model->layers);
    prepare_outputs(self, step);
    logits(self, step);
    finish_outputs(self, step);
    atomic_store_explicit(&step->through, 1, memory_order_relaxed);
}
