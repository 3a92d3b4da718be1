/* What a decoder has, and a step of it: shared by decoder.c (what Python calls) and step.c (the phases). */

#ifndef LLMASOS_DECODER_H
#define LLMASOS_DECODER_H

#include <stdatomic.h>

#include "native.h"

#define PHASES_PER_LAYER 10
#define PHASES_BESIDE 8

/* Rows that attend together: they are of one context and follow each other. */
typedef struct {
    int64_t first, count;
} group;

/* Buffers for `rows` rows; each row starts on a cache line. */
typedef struct {
    int64_t rows;
    float *state;  /* [rows, hidden]: what goes from layer to layer */
    float *normed; /* [rows, hidden] */
    float *qkv;    /* [rows, columns of qkv] */
    float *mixed;  /* [rows, heads * head_dim]: what attention gives */
    float *result; /* [rows, widest]: what a product gives that is added to the state */
    float *middle; /* [rows, intermediate] */
    /* Rows as the input of a product (make_input). */
    uint8_t *values; /* [rows, values_stride] */
    float *value_scale;
    int32_t *value_sums;
    group *groups;
    float *best_value; /* a member's: [rows] */
    int64_t *best_index;
} buffers;

typedef struct {
    const model *model;
    const kernels *kernels;
    team *team;
    int64_t widest;        /* columns of the widest product whose output is a `result` */
    int64_t values_stride; /* bytes */
    buffers rows;
    float *scores; /* a member's: [MAX_QUERIES, scores_stride] */
    int64_t scores_stride;
} decoder;

typedef struct {
    decoder *decoder;
    const batch *batch;
    int64_t groups;
    atomic_int through; /* a member has come to the end; then all items of all phases are finished */
} step;

/* The work of a team's member for a `step`. */
void run_step(member *self, void *step);

static inline int64_t up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }
static inline int64_t padded_dim(const model *model) { return up(model->head_dim, LANES); }
static inline int64_t attention_size(const model *model) { return model->heads * model->head_dim; }
static inline int64_t row_size(int64_t columns) { return up(columns, LANES); }

/* --- what a product takes ---------------------------------------------------------------------------------------- */

/* Does a form want the sums of groups, and bytes with signs? */
static inline int grouped(const matrix *weights) { return weights->bits == 4 || weights->group_kind != UNGROUPED; }

/* Bytes of a row that `make_input` writes. */
static inline int64_t input_size(const kernels *kernels, const matrix *weights)
{
    if (weights->bits == 32) return 0;
    return weights->bits == 16 ? weights->inputs * kernels->rounded_size : weights->inputs;
}

/* How many scales a row of inputs has, where a row has `stride` bytes. */
static inline int64_t scales_of(const matrix *weights, int64_t stride) { return by_group(weights) ? stride / GROUP : 1; }

/* Makes of `row` [size] the input of a product with the weights. */
static inline void make_input(const kernels *kernels, const matrix *weights, const float *row, int64_t size, void *values,
                              float *scale, int32_t *sums)
{
    if (weights->bits == 16) kernels->round_row(row, size, weights->inputs, values);
    if (by_group(weights))
        kernels->quantise_groups(row, size, weights->inputs, values, scale, sums);
    else if (weights->bits <= 8)
        kernels->quantise(row, size, weights->inputs, grouped(weights), values, scale, grouped(weights) ? sums : NULL);
}

#endif
