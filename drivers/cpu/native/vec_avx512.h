/* Sixteen lanes in one register: AVX-512 with VNNI; with BFLOAT_DOT defined, the dot products of AVX512_BF16 too. */
#include <immintrin.h>
#include <string.h>

#define TILE_ROWS 8
#define TILE_ROWS_4BIT 4
#define FLOAT_ROWS 8
#define FLOAT_BLOCKS 2
#define UNSIGNED_ACTIVATIONS 1 /* vpdpbusd multiplies unsigned activations by signed weights */

typedef __m512 vf;
typedef __m512i vi;

static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf vf_set(float a) { return _mm512_set1_ps(a); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_abs(vf a) { return _mm512_abs_ps(a); }
/* Is any lane of a not at most that of b (greater, or no number)? */
static inline int vf_exceeds(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ) != 0; }
static inline vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_power2(vf a) /* 2 ** a for whole a in -126 .. 127 */
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127)), 23));
}
static inline vf vf_bfloat(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline vf vf_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline vf vf_byte(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline void vf_bytes(int8_t *p, vf a) /* whole numbers in -128 .. 127 */
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}

static inline vi vi_load(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline vi vi_zero(void) { return _mm512_setzero_si512(); }
static inline vi vi_set(int32_t a) { return _mm512_set1_epi32(a); }
static inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi vi_mul(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
static inline vi vi_byte(const int8_t *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline vf vi_float(vi a) { return _mm512_cvtepi32_ps(a); }

/* Sixteen columns' weights for four inputs (or, in 4 bits, eight). */
typedef __m512i vw;
static inline vw vw_load(const int8_t *p) { return _mm512_loadu_si512(p); }
static inline vw vw_low(vw a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
static inline vw vw_high(vw a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
static inline vw vw_flip(vw a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); } /* 128 more, without signs */
/* sum += unsigned bytes * signed bytes. Not by the intrinsic: gcc 12 copies every sum of a tile twice around it. */
static inline vi add_products(vi sum, __m512i bytes, __m512i others)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(others));
    return sum;
}
static inline vi dot8(vi sum, int32_t four, vw weights) { return add_products(sum, _mm512_set1_epi32(four), weights); }
static inline vi dot4(vi sum, int32_t four, vw weights) { return add_products(sum, weights, _mm512_set1_epi32(four)); }

/* Two consecutive inputs of sixteen columns in bfloat16 times two activations at x. */
#ifdef BFLOAT_DOT
#define PAIR 4 /* bytes of two activations */
/* The instruction rounds each of its two additions to the nearest and takes and gives numbers below 2 ** -126 as 0. */
static inline vf dot16(vf sum, const uint8_t *x, vw weights)
{
    int32_t two;
    memcpy(&two, x, sizeof two);
    const __m512i both = _mm512_set1_epi32(two);
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(both)); /* not by the intrinsic, as above */
    return sum;
}
#else
#define PAIR 8
static inline vf vw_even(vw a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
static inline vf vw_odd(vw a)
{
    return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32((int32_t)0xffff0000u)));
}
#endif
