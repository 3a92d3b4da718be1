/* The native decoder: one step of a llama-like network over paged KV, in one parallel region.

   Plain C without dependencies. vec_*.h has the parts that differ between instruction sets; kernels.inc is compiled once
   for each of them, and isa.c chooses among those that this CPU has.

   Noninterference. A row is one token of one context. Everything that is computed for a row is a function of that row,
   its context's KV and the weights: integer sums are exact, and each sum of floats runs in an order that depends on the
   row's own length only. So a row's bits are the same alone and in any batch, chunking or number of threads. To keep it
   so: no sum of floats may be split by rows, threads or tiles, and -ffp-contract=off (pyproject.toml) leaves products and
   sums as they are written. */

#ifndef LLMASOS_NATIVE_H
#define LLMASOS_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#define ABI 6
#define LANES 16      /* columns of a packed block, tokens of a KV frame */
#define ITEM 32       /* columns a work item computes: two blocks */
#define GROUP 32      /* weights that share a scale, where not all of a column do */
#define MAX_QUERIES 8 /* query vectors that attention takes through the keys together */

/* The kinds of groups' scales: a file's own, or (bfloat16, of 4 bits without zeros) ours. UNGROUPED: a column has one
   scale, or (32 and 16 bits) none. */
enum { UNGROUPED = 0, BFLOAT16 = 1, FLOAT16 = 2, FLOAT32 = 3, OWN = 4 };

/* y = x W^T + bias. Columns are packed in blocks of 16. Zeros pad `columns` to a multiple of ITEM, and `inputs` to the
   units named here.

   - 32 bits: floats [columns/16][inputs][16].
   - 16 bits: bfloat16, two inputs of a column together, [columns/16][inputs/2][16][2]. Inputs: a multiple of 2.
   - 8 bits: bytes with signs, four inputs together, [columns/16][inputs/4][16][4]. Inputs: a multiple of 4, or of GROUP.
   - 4 bits: 0..15, [columns/16][inputs/8][16][4], of eight inputs the low halves for 0..3 and the high ones for 4..7.
     Inputs: a multiple of GROUP.

   A weight of 8 bits is data * scale[column], or, in groups, (data - zero) * group_scale[columns/16][inputs/GROUP][16]
   like one of 4 bits; zero is group_zero of the same shape, and where that is NULL 0 for 8 bits and 8 for 4.

   Activations are rounded to bfloat16 for 16 bits, and for 8 and 4 bits to whole numbers of up to 127 times the row's
   greatest magnitude / 127; for 32 bits they stay as they are. Where groups are a file's own (`by_group`) each group of a
   row has a greatest magnitude of its own, as llama.cpp rounds: the checkpoint's makers measured that. */
typedef struct {
    const int8_t *data;
    const float *scale;        /* [columns]; 8 bits without groups only */
    const int32_t *correction; /* [columns], -128 times the sum of a column; likewise */
    const void *group_scale;   /* of `group_kind` */
    const int8_t *group_zero;
    const float *bias; /* [columns], or NULL */
    int64_t columns, inputs, bits, group_kind;
} matrix;

/* Has a product with it a scale for each group of a row's activations? */
static inline int by_group(const matrix *w) { return w->group_kind != UNGROUPED && w->group_kind != OWN; }

typedef struct {
    matrix qkv, out, gate_up, down;                  /* gate_up: blocks of gate and up take turns */
    const float *before_attention, *after_attention; /* norms [hidden]; the second of the output, NULL in most models */
    const float *before_mlp, *after_mlp;
    const float *query_norm, *key_norm; /* [head_dim], or NULL */
    int64_t window;                     /* keys a query sees; 0: all */
} layer;

enum { SILU = 0, GELU_TANH = 1 };

typedef struct {
    int64_t hidden, layers, heads, kv_heads, head_dim, padded_head_dim, intermediate, vocabulary, context, activation;
    int64_t embedding_bits;     /* 16 (bfloat16) or 32 */
    const void *embedding;      /* [vocabulary, hidden] */
    const float *cosine, *sine; /* [context, rotated / 2] */
    int64_t rotated;            /* dimensions of a head that are rotated */
    const layer *layer;
    const float *last_norm;
    matrix head;
    float norm_epsilon, embedding_scale, attention_scale, attention_softcap, logit_softcap; /* softcap 0: none */
} model;

/* The rows of a step. Frames of KV are [layers][2][kv_heads] of, for keys, [padded_head_dim][16] and, for values,
   [16][padded_head_dim]: floats, bfloat16, or, in 8 bits, bytes and behind them 16 floats, what the bytes of each of the
   16 tokens are to be multiplied by. A row's own key and value are written before any row of the step attends. */
typedef struct {
    int64_t rows, outputs;
    const int64_t *token, *position; /* [rows] */
    const int64_t *const *table;     /* [rows]: frames of the row's context; rows of one context have the same pointer */
    uint8_t *slab;
    int64_t frame_size;    /* bytes */
    int64_t kv_bits;       /* 32, 16 or 8 */
    const int64_t *output; /* [outputs]: rows whose logits are wanted */
    float *logits;         /* [outputs, logits_stride], or NULL for the greatest only */
    int64_t logits_stride;
    int64_t *best;                /* [outputs]: the first of the greatest logits; -1 if it is not finite */
    const volatile int32_t *stop; /* another thread makes it other than 0: give the step up at the next layer. Or NULL */
    /* For a thread that reads layers ahead, or NULL: the step writes the layer that it begins to *layer, in the end their
       number, and waits for layers from *ready on, which grows. */
    volatile int64_t *layer;
    const volatile int64_t *ready;
} batch;

/* A kernel's view of a matrix product: `rows` rows of activations as the matrix's form wants them (`quantise`,
   `round_row`; 32 bits: floats). */
typedef struct {
    const void *values;   /* [rows, stride] */
    const float *scale;   /* [rows], or [rows, stride / GROUP] where there is one `by_group`; 8 and 4 bits only */
    const int32_t *sums;  /* [rows, stride / GROUP], sums of groups; groups only */
    int64_t rows, stride; /* bytes */
} activations;

typedef struct {
    const char *name;
    int64_t rounded_size; /* bytes of an activation that round_row has made */
    /* Columns item * ITEM .. + ITEM for all rows, to out[row * stride + column]. */
    void (*product)(const matrix *, const activations *, int64_t item, float *out, int64_t stride);
    /* The same through activation(gate) * up: 16 columns at out[row * stride + item * 16]. */
    void (*gated_product)(const matrix *, const activations *, int64_t item, float *out, int64_t stride, int64_t kind);
    /* The greatest of the item's columns below `limit`, after the softcap (0: none), against what `value` and `index`
       [rows] have; ties to the first. */
    void (*best_product)(const matrix *, const activations *, int64_t item, int64_t limit, float softcap, float *value,
                         int64_t *index);
    /* out = x / rms(x) * weight; out may be x. `size` need not be a multiple of anything. */
    void (*norm)(const float *x, const float *weight, float *out, int64_t size, float epsilon);
    /* values[0..padded) (0 from size on), the scale, and (sums not NULL) the sums of groups. With `signs` bytes have
       them; without, they may be 128 more, for products with weights that have. */
    void (*quantise)(const float *x, int64_t size, int64_t padded, int signs, int8_t *values, float *scale,
                     int32_t *sums);
    /* The same with a scale for each group: scale[0..padded / GROUP). */
    void (*quantise_groups)(const float *x, int64_t size, int64_t padded, int8_t *values, float *scale, int32_t *sums);
    /* values[0..padded) rounded to bfloat16. */
    void (*round_row)(const float *x, int64_t size, int64_t padded, void *values);
    void (*add)(float *x, const float *y, int64_t size);
    void (*embed)(const void *row, int64_t bits, float scale, float *out, int64_t size);
    /* Rotate the first `rotated` of a head's dimensions: pairs are (i, i + rotated / 2). */
    void (*rotate)(float *head, const float *cosine, const float *sine, int64_t rotated);
    void (*cap)(float *x, int64_t size, float limit);
    void (*narrow)(const float *x, uint16_t *out, int64_t size, int64_t step); /* to bfloat16, every `step` elements */
    /* One to MAX_QUERIES queries of one key-value head over keys first[i] .. last[i]; scores [MAX_QUERIES, room]. Offsets
       are those of the head's keys and values in a frame, in bytes. */
    void (*attend)(const float *const *query, float *const *out, const int64_t *first, const int64_t *last, int64_t count,
                   const batch *b, const int64_t *table, int64_t key_offset, int64_t value_offset, int64_t dim,
                   float scale, float softcap, float *scores, int64_t room);
} kernels;

extern const kernels kernels_generic;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAVE_X86 1
extern const kernels kernels_avx2, kernels_avxvnni, kernels_avx512vnni, kernels_avx512bf16;
#endif

/* The best of this CPU's, or the one of that name; NULL if this CPU (or build) has none of that name. */
const kernels *choose_kernels(const char *name);

/* A team of threads (team.c). */
typedef struct team team;
typedef struct {
    team *team;
    int64_t index; /* of this thread */
    int64_t phase; /* how many it has been through */
    int64_t taken; /* items of this phase, not yet reported as finished */
} member;

void nap(void); /* some 50 us of sleep */
team *team_start(int64_t threads, int64_t phases);
void team_run(team *, void (*work)(member *, void *), void *); /* all members, this thread among them */
void team_stop(team *);
int64_t team_size(const team *);
/* The next of this phase's items 0 .. items - 1, some at a time; sets *last, returns the first, or -1: none left. What
   the member took before counts as finished. */
int64_t team_take(member *, int64_t items, int64_t *last);
void team_next(member *, int64_t items); /* wait until all of the phase's items are finished, and start the next */

#endif
