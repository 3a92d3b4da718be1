/* Sixteen lanes as the compiler makes them: NEON on ARM, SSE2 on older x86, anything elsewhere. */
#include <math.h>
#include <string.h>

#define TILE_ROWS 2
#define TILE_ROWS_4BIT 1
#define FLOAT_ROWS 2
#define FLOAT_BLOCKS 1
#define PAIR 8

typedef struct {
    float lane[LANES];
} vf;
typedef struct {
    int32_t lane[LANES];
} vi;
typedef struct {
    int8_t byte[4 * LANES];
} vw;

#define LANEWISE(type, expression)                                                                                       \
    type result;                                                                                                         \
    for (int i = 0; i < LANES; i++) result.lane[i] = (expression);                                                       \
    return result

static inline vf vf_load(const float *p) { LANEWISE(vf, p[i]); }
static inline void vf_store(float *p, vf a) { memcpy(p, a.lane, sizeof a.lane); }
static inline vf vf_set(float a) { LANEWISE(vf, a); }
static inline vf vf_add(vf a, vf b) { LANEWISE(vf, a.lane[i] + b.lane[i]); }
static inline vf vf_sub(vf a, vf b) { LANEWISE(vf, a.lane[i] - b.lane[i]); }
static inline vf vf_mul(vf a, vf b) { LANEWISE(vf, a.lane[i] * b.lane[i]); }
static inline vf vf_div(vf a, vf b) { LANEWISE(vf, a.lane[i] / b.lane[i]); }
static inline vf vf_min(vf a, vf b) { LANEWISE(vf, a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
static inline vf vf_max(vf a, vf b) { LANEWISE(vf, a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
#if defined(__ARM_FEATURE_FMA) || defined(__FMA__)
static inline vf vf_fma(vf a, vf b, vf c) { LANEWISE(vf, __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i])); }
#else
static inline vf vf_fma(vf a, vf b, vf c) { LANEWISE(vf, a.lane[i] * b.lane[i] + c.lane[i]); }
#endif
static inline vf vf_abs(vf a) { LANEWISE(vf, fabsf(a.lane[i])); }
/* Is any lane of a not at most that of b (greater, or no number)? */
static inline int vf_exceeds(vf a, vf b)
{
    int any = 0;
    for (int i = 0; i < LANES; i++) any |= !(a.lane[i] <= b.lane[i]);
    return any;
}
/* To the nearest whole number, ties to even: 1.5 * 2**23 leaves no bits for the rest. */
static inline vf vf_round(vf a) { LANEWISE(vf, (a.lane[i] + 12582912.0f) - 12582912.0f); }
/* C does not say what becomes of a float that is no number. */
static inline int32_t whole(float a) { return a == a ? (int32_t)a : 0; }
/* 2 ** a for whole a in -126 .. 127 */
static inline vf vf_power2(vf a)
{
    vf result;
    for (int i = 0; i < LANES; i++) {
        const uint32_t bits = (uint32_t)(whole(a.lane[i]) + 127) << 23;
        memcpy(&result.lane[i], &bits, 4);
    }
    return result;
}
static inline vf vf_bfloat(const uint16_t *p)
{
    vf result;
    for (int i = 0; i < LANES; i++) {
        const uint32_t bits = (uint32_t)p[i] << 16;
        memcpy(&result.lane[i], &bits, 4);
    }
    return result;
}
static inline float half(uint16_t bits) /* of float16: exact */
{
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    uint32_t word = sign | (rest >= 0x7c00 ? rest << 13 | 0x7f800000u : (rest << 13) + (112u << 23));
    float value;
    if (rest < 0x400) { /* no hidden bit: as many 2**-24 */
        value = (float)rest * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &word, sizeof value);
    return value;
}
static inline vf vf_half(const uint16_t *p) { LANEWISE(vf, half(p[i])); }
static inline vf vf_byte(const int8_t *p) { LANEWISE(vf, (float)p[i]); }
static inline void vf_bytes(int8_t *p, vf a) /* whole numbers in -128 .. 127 */
{
    for (int i = 0; i < LANES; i++) p[i] = (int8_t)whole(a.lane[i]);
}

static inline vi vi_load(const int32_t *p) { LANEWISE(vi, p[i]); }
static inline vi vi_zero(void) { LANEWISE(vi, 0); }
static inline vi vi_set(int32_t a) { LANEWISE(vi, a); }
static inline vi vi_add(vi a, vi b) { LANEWISE(vi, a.lane[i] + b.lane[i]); }
static inline vi vi_mul(vi a, vi b) { LANEWISE(vi, a.lane[i] * b.lane[i]); }
static inline vi vi_byte(const int8_t *p) { LANEWISE(vi, p[i]); }
static inline vf vi_float(vi a) { LANEWISE(vf, (float)a.lane[i]); }

static inline vw vw_load(const int8_t *p)
{
    vw result;
    memcpy(result.byte, p, sizeof result.byte);
    return result;
}
static inline vw vw_low(vw a)
{
    for (int i = 0; i < 4 * LANES; i++) a.byte[i] &= 15;
    return a;
}
static inline vw vw_high(vw a)
{
    for (int i = 0; i < 4 * LANES; i++) a.byte[i] = (int8_t)((uint8_t)a.byte[i] >> 4);
    return a;
}
static inline vi dot8(vi sum, int32_t four, vw w)
{
    int8_t a[4];
    memcpy(a, &four, 4);
    for (int i = 0; i < LANES; i++)
        sum.lane[i] +=
            a[0] * w.byte[4 * i] + a[1] * w.byte[4 * i + 1] + a[2] * w.byte[4 * i + 2] + a[3] * w.byte[4 * i + 3];
    return sum;
}
static inline vi dot4(vi sum, int32_t four, vw w) { return dot8(sum, four, w); }
static inline vw vw_flip(vw a) { return a; }  /* nobody's here: activations have signs */
static inline vf vw_pair(const vw *a, int at) /* of pairs of bfloat16 */
{
    vf result;
    for (int i = 0; i < LANES; i++) {
        uint16_t bits;
        memcpy(&bits, a->byte + 4 * i + at, sizeof bits);
        const uint32_t word = (uint32_t)bits << 16;
        memcpy(&result.lane[i], &word, 4);
    }
    return result;
}
static inline vf vw_even(vw a) { return vw_pair(&a, 0); }
static inline vf vw_odd(vw a) { return vw_pair(&a, 2); }
