/* Random networks of odd sizes through the native decoder, to be built with AddressSanitizer and
   UndefinedBehaviorSanitizer.

   fuzz SEED COUNT ISA: each network's contexts are computed alone and token by token, then all together in random chunks
   with another number of threads. Every logit must be the same to the bit. Buffers have exactly the sizes that native.h
   asks for, so reading past one is found out. Exits 1 and says what differed. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

typedef struct decoder decoder;
decoder *native_open(const model *, int64_t threads, const char *isa);
int native_step(decoder *, const batch *);
void native_close(decoder *);

static uint64_t state;
static uint32_t next(void) { return (uint32_t)((state = state * 6364136223846793005u + 1442695040888963407u) >> 33); }
static int64_t between(int64_t low, int64_t high) { return low + (int64_t)(next() % (uint64_t)(high - low + 1)); }
static float number(void) { return (float)between(-1000, 1000) / 1000.0f; }
static int64_t up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

static void *owned[4096];
static int owned_count;
static void *give(size_t size) { return owned[owned_count++] = calloc(1, size ? size : 1); }

static float *floats(int64_t count, float about)
{
    float *const p = give((size_t)count * sizeof *p);
    for (int64_t i = 0; i < count; i++) p[i] = about + number() * 0.5f;
    return p;
}

static uint16_t bfloat(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(bits >> 16);
}

/* A form of weights: bits, and what scales of groups are. */
typedef struct {
    int64_t bits, group_kind, zeros;
} form;

static const form forms[] = {{32, UNGROUPED, 0}, {16, UNGROUPED, 0}, {8, UNGROUPED, 0}, {4, BFLOAT16, 0},
                             {8, FLOAT16, 0},    {4, FLOAT16, 1},    {8, FLOAT32, 1},   {4, FLOAT32, 0}};

static matrix random_matrix(int64_t columns, int64_t inputs, form f, int biased)
{
    const int64_t unit = f.group_kind ? GROUP : f.bits == 8 ? 4 : f.bits == 16 ? 2 : 1;
    matrix w = {.columns = up(columns, ITEM), .inputs = up(inputs, unit), .bits = f.bits, .group_kind = f.group_kind};
    const float about = 0.02f / (float)(1 + inputs / 8); /* of weights of 8 bits */
    const int64_t weights = w.columns * w.inputs, groups = w.columns * (w.inputs / GROUP);
    int8_t *const data = give((size_t)(weights * f.bits / 8));
    w.data = data;
    if (f.bits == 32)
        for (int64_t i = 0; i < weights; i++) ((float *)data)[i] = 100.0f * about * number();
    else if (f.bits == 16)
        for (int64_t i = 0; i < weights; i++) ((uint16_t *)data)[i] = bfloat(100.0f * about * number());
    else if (f.group_kind)
        for (int64_t i = 0; i < weights * f.bits / 8; i++) data[i] = (int8_t)between(-128, 127);
    if (f.group_kind) {
        const float size = f.bits == 8 ? about : 5.0f * about;
        if (f.group_kind == FLOAT32) {
            float *const scale = give((size_t)groups * sizeof *scale);
            for (int64_t i = 0; i < groups; i++) scale[i] = size * number();
            w.group_scale = scale;
        } else {
            uint16_t *const scale = give((size_t)groups * sizeof *scale);
            /* float16: of either sign, up to 1/64, some without a hidden bit */
            for (int64_t i = 0; i < groups; i++)
                scale[i] = f.group_kind == BFLOAT16 ? bfloat(size * number())
                                                    : (uint16_t)((next() & 0x8000) | between(0, 0x2400));
            w.group_scale = scale;
        }
        int8_t *const zero = f.zeros ? give((size_t)groups) : NULL;
        for (int64_t i = 0; zero && i < groups; i++)
            zero[i] = (int8_t)(f.bits == 8 ? between(-128, 127) : between(0, 16));
        w.group_zero = zero;
    } else if (f.bits == 8) {
        float *const scale = give((size_t)w.columns * sizeof *scale);
        int32_t *const correction = give((size_t)w.columns * sizeof *correction);
        for (int64_t c = 0; c < w.columns; c++) {
            scale[c] = about * (1.0f + number() * 0.5f);
            for (int64_t k = 0; k < inputs && c < columns; k++) {
                const int8_t value = (int8_t)between(-128, 127);
                data[(c / LANES * (w.inputs / 4) + k / 4) * LANES * 4 + c % LANES * 4 + k % 4] = value;
                correction[c] -= 128 * value;
            }
        }
        w.scale = scale, w.correction = correction;
    }
    if (biased) w.bias = floats(w.columns, 0.0f);
    return w;
}

static void random_model(model *m, int64_t at)
{
    const int64_t shared = between(1, 11), count = sizeof forms / sizeof *forms;
    const form f = forms[at % count];
    *m = (model){.hidden = between(1, 90),
                 .layers = between(1, 3),
                 .kv_heads = between(1, 3),
                 .head_dim = 2 * between(1, 45),
                 .intermediate = between(1, 100),
                 .vocabulary = between(2, 150),
                 .context = 16 * between(2, 8),
                 .activation = next() % 2 ? SILU : GELU_TANH,
                 .norm_epsilon = 1e-6f,
                 .embedding_scale = 1.0f};
    m->heads = m->kv_heads * shared;
    m->padded_head_dim = up(m->head_dim, LANES);
    m->rotated = 2 * between(1, m->head_dim / 2);
    m->attention_scale = 1.0f / (float)m->head_dim;
    m->attention_softcap = next() % 3 ? 0.0f : 5.0f;
    m->logit_softcap = next() % 3 ? 0.0f : 3.0f;
    m->embedding_bits = f.bits == 32 ? 32 : 16;
    if (f.bits == 32) {
        m->embedding = floats(m->vocabulary * m->hidden, 0.0f);
    } else {
        uint16_t *const embedding = give((size_t)(m->vocabulary * m->hidden) * sizeof *embedding);
        for (int64_t i = 0; i < m->vocabulary * m->hidden; i++) embedding[i] = bfloat(number());
        m->embedding = embedding;
    }
    m->cosine = floats(m->context * m->rotated / 2, 0.0f);
    m->sine = floats(m->context * m->rotated / 2, 0.0f);
    layer *const layers = give((size_t)m->layers * sizeof *layers);
    m->layer = layers;
    const int biased = next() % 2, post = next() % 2, heads_normed = next() % 2;
    for (int64_t i = 0; i < m->layers; i++) {
        layers[i] = (layer){
            .qkv = random_matrix((m->heads + 2 * m->kv_heads) * m->head_dim, m->hidden, f, biased),
            .out = random_matrix(m->hidden, m->heads * m->head_dim, f, biased),
            .gate_up = random_matrix(2 * up(m->intermediate, LANES), m->hidden, f, biased),
            .down = random_matrix(m->hidden, m->intermediate, f, biased),
            .before_attention = floats(m->hidden, 1.0f),
            .before_mlp = floats(m->hidden, 1.0f),
            .window = next() % 2 ? between(1, m->context) : 0,
        };
        if (post) layers[i].after_attention = floats(m->hidden, 1.0f), layers[i].after_mlp = floats(m->hidden, 1.0f);
        if (heads_normed)
            layers[i].query_norm = floats(m->head_dim, 1.0f), layers[i].key_norm = floats(m->head_dim, 1.0f);
    }
    m->last_norm = floats(m->hidden, 1.0f);
    m->head = random_matrix(m->vocabulary, m->hidden, f.bits >= 16 ? f : forms[2], 0);
}

#define CONTEXTS 5

typedef struct {
    int64_t length[CONTEXTS], *token[CONTEXTS], *table[CONTEXTS];
    uint8_t *slab;
    int64_t frame_size, kv_bits;
} contexts;

/* Compute `count[c]` tokens of each context from done[c] on; the logits of all of them to out[c] [position, vocabulary].
 */
static void compute(decoder *d, const model *m, const contexts *c, int64_t *done, const int64_t *count, float **out)
{
    int64_t token[1024], position[1024], output[1024], best[1024], owner[1024], rows = 0;
    const int64_t *table[1024];
    for (int i = 0; i < CONTEXTS; i++)
        for (int64_t n = 0; n < count[i]; n++, rows++) {
            token[rows] = c->token[i][done[i] + n], position[rows] = done[i] + n;
            table[rows] = c->table[i], output[rows] = rows, owner[rows] = i;
        }
    if (!rows) return;
    float *const logits = malloc((size_t)(rows * m->head.columns) * sizeof *logits);
    batch b = {rows,          rows,       token,  position, table,           c->slab,
               c->frame_size, c->kv_bits, output, logits,   m->head.columns, best};
    if (native_step(d, &b)) exit(2);
    b.logits = NULL;
    if (native_step(d, &b)) exit(2); /* again, for the greatest only */
    for (int64_t r = 0; r < rows; r++) {
        const float *const row = logits + r * m->head.columns;
        int64_t top = 0;
        for (int64_t v = 1; v < m->vocabulary; v++)
            if (row[v] > row[top]) top = v;
        if (best[r] != top) printf("the greatest is %lld, not %lld\n", (long long)top, (long long)best[r]), exit(1);
        memcpy(out[owner[r]] + position[r] * m->vocabulary, row, (size_t)m->vocabulary * sizeof *row);
    }
    free(logits);
    for (int i = 0; i < CONTEXTS; i++) done[i] += count[i];
}

static void one(const char *isa, int64_t at)
{
    model m;
    random_model(&m, at);
    contexts c = {.kv_bits = 8 << between(0, 2)};
    const int64_t vector = c.kv_bits / 8 * m.padded_head_dim + (c.kv_bits == 8 ? (int64_t)sizeof(float) : 0);
    c.frame_size = m.layers * 2 * m.kv_heads * LANES * vector;
    const int64_t blocks = m.context / LANES, frames = blocks * CONTEXTS;
    c.slab = give((size_t)(frames * c.frame_size));
    float *want[CONTEXTS], *got[CONTEXTS];
    for (int i = 0; i < CONTEXTS; i++) {
        c.length[i] = between(1, m.context);
        c.token[i] = give((size_t)m.context * sizeof *c.token[i]);
        c.table[i] = give((size_t)blocks * sizeof *c.table[i]);
        for (int64_t n = 0; n < m.context; n++) c.token[i][n] = between(0, m.vocabulary - 1);
        for (int64_t b = 0; b < blocks; b++) c.table[i][b] = b * CONTEXTS + i;
        want[i] = give((size_t)(c.length[i] * m.vocabulary) * sizeof *want[i]);
        got[i] = give((size_t)(c.length[i] * m.vocabulary) * sizeof *got[i]);
    }
    decoder *const alone = native_open(&m, 1, isa), *const together = native_open(&m, between(2, 3), isa);
    if (!alone || !together) exit(2);
    for (int i = 0; i < CONTEXTS; i++) {
        int64_t done[CONTEXTS] = {0};
        while (done[i] < c.length[i]) {
            int64_t count[CONTEXTS] = {0};
            count[i] = 1;
            compute(alone, &m, &c, done, count, want);
        }
    }
    /* What a frame held before must not matter, were it no number. */
    memset(c.slab, 0xff, (size_t)(frames * c.frame_size));
    int64_t done[CONTEXTS] = {0};
    for (int left = 1; left;) {
        int64_t count[CONTEXTS];
        left = 0;
        for (int i = 0; i < CONTEXTS; i++) {
            const int64_t rest = c.length[i] - done[i];
            count[i] = rest ? between(0, rest < 40 ? rest : 40) : 0;
            left |= rest > 0;
        }
        compute(together, &m, &c, done, count, got);
    }
    for (int i = 0; i < CONTEXTS; i++)
        if (memcmp(want[i], got[i], (size_t)(c.length[i] * m.vocabulary) * sizeof **want)) {
            printf("context %d of %lld tokens: other logits together than alone\n", i, (long long)c.length[i]);
            exit(1);
        }
    native_close(alone);
    native_close(together);
    while (owned_count) free(owned[--owned_count]);
}

int main(int argc, char **argv)
{
    if (argc != 4) return 2;
    const uint64_t seed = strtoull(argv[1], NULL, 10);
    const int count = atoi(argv[2]);
    if (!choose_kernels(argv[3])) return 3;
    for (int i = 0; i < count; i++) {
        state = seed * 1000003u + (uint64_t)i;
        next();
        printf("network %d\n", i);
        fflush(stdout);
        one(argv[3], i);
    }
    return 0;
}
