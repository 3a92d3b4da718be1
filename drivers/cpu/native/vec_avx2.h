/* Sixteen lanes in two registers: AVX2 with FMA; with VNNI defined, AVX-VNNI's dot products too. */
#include <immintrin.h>

#define TILE_ROWS 2
#define TILE_ROWS_4BIT 1
#define FLOAT_ROWS 4
#define FLOAT_BLOCKS 1
#define PAIR 8
#ifdef VNNI
#define UNSIGNED_ACTIVATIONS 1
#endif

typedef struct {
    __m256 low, high;
} vf;
typedef struct {
    __m256i low, high;
} vi;

static inline vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a.low), _mm256_storeu_ps(p + 8, a.high); }
static inline vf vf_set(float a) { return (vf){_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
static inline vf vf_add(vf a, vf b) { return (vf){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
static inline vf vf_sub(vf a, vf b) { return (vf){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
static inline vf vf_mul(vf a, vf b) { return (vf){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
static inline vf vf_div(vf a, vf b) { return (vf){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
static inline vf vf_min(vf a, vf b) { return (vf){_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
static inline vf vf_max(vf a, vf b) { return (vf){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
static inline vf vf_fma(vf a, vf b, vf c)
{
    return (vf){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
static inline vf vf_abs(vf a)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (vf){_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
/* Is any lane of a not at most that of b (greater, or no number)? */
static inline int vf_exceeds(vf a, vf b)
{
    return _mm256_movemask_ps(
        _mm256_or_ps(_mm256_cmp_ps(a.low, b.low, _CMP_NLE_UQ), _mm256_cmp_ps(a.high, b.high, _CMP_NLE_UQ)));
}
static inline vf vf_round(vf a)
{
    return (vf){_mm256_round_ps(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline __m256 power2_half(__m256 a)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127)), 23));
}
static inline vf vf_power2(vf a) { return (vf){power2_half(a.low), power2_half(a.high)}; } /* whole a in -126 .. 127 */
static inline __m256 bfloat_half(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
static inline vf vf_bfloat(const uint16_t *p) { return (vf){bfloat_half(p), bfloat_half(p + 8)}; }
static inline vf vf_half(const uint16_t *p)
{
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline __m256 byte_half(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline vf vf_byte(const int8_t *p) { return (vf){byte_half(p), byte_half(p + 8)}; }
static inline void vf_bytes(int8_t *p, vf a) /* whole numbers in -128 .. 127 */
{
    const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high));
    const __m256i ordered = _mm256_permute4x64_epi64(packed, 0xd8);
    _mm_storeu_si128((__m128i *)p,
                     _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}

static inline vi vi_load(const int32_t *p)
{
    return (vi){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 8))};
}
static inline vi vi_zero(void) { return (vi){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline vi vi_set(int32_t a) { return (vi){_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
static inline vi vi_add(vi a, vi b) { return (vi){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
static inline vi vi_mul(vi a, vi b) { return (vi){_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)}; }
static inline vi vi_byte(const int8_t *p)
{
    return (vi){_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8)))};
}
static inline vf vi_float(vi a) { return (vf){_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }

typedef vi vw;
static inline vw vw_load(const int8_t *p)
{
    return (vw){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32))};
}
static inline vw vw_low(vw a)
{
    const __m256i mask = _mm256_set1_epi8(15);
    return (vw){_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask)};
}
static inline vw vw_high(vw a) { return vw_low((vw){_mm256_srli_epi16(a.low, 4), _mm256_srli_epi16(a.high, 4)}); }
static inline vw vw_flip(vw a) /* 128 more, without signs */
{
    const __m256i most = _mm256_set1_epi8(-128);
    return (vw){_mm256_xor_si256(a.low, most), _mm256_xor_si256(a.high, most)};
}
static inline vf vw_even(vw a) /* of pairs of bfloat16 */
{
    return (vf){_mm256_castsi256_ps(_mm256_slli_epi32(a.low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(a.high, 16))};
}
static inline vf vw_odd(vw a)
{
    const __m256i mask = _mm256_set1_epi32((int32_t)0xffff0000u);
    return (vf){_mm256_castsi256_ps(_mm256_and_si256(a.low, mask)), _mm256_castsi256_ps(_mm256_and_si256(a.high, mask))};
}
#ifdef VNNI
static inline vi dot8(vi sum, int32_t four, vw w)
{
    const __m256i a = _mm256_set1_epi32(four);
    return (vi){_mm256_dpbusd_avx_epi32(sum.low, a, w.low), _mm256_dpbusd_avx_epi32(sum.high, a, w.high)};
}
static inline vi dot4(vi sum, int32_t four, vw w)
{
    const __m256i a = _mm256_set1_epi32(four);
    return (vi){_mm256_dpbusd_avx_epi32(sum.low, w.low, a), _mm256_dpbusd_avx_epi32(sum.high, w.high, a)};
}
#else
/* vpmaddubsw adds pairs of products in 16 bits; 2 * 128 * 127 fits, so nothing saturates: activations are never -128,
   whose sign cannot be changed, but weights may be. */
static inline __m256i madd(__m256i sum, __m256i plain, __m256i with_sign)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(plain, with_sign), _mm256_set1_epi16(1)));
}
static inline vi dot8(vi sum, int32_t four, vw w)
{
    const __m256i a = _mm256_set1_epi32(four);
    return (vi){madd(sum.low, _mm256_abs_epi8(w.low), _mm256_sign_epi8(a, w.low)),
                madd(sum.high, _mm256_abs_epi8(w.high), _mm256_sign_epi8(a, w.high))};
}
static inline vi dot4(vi sum, int32_t four, vw w)
{
    const __m256i a = _mm256_set1_epi32(four);
    return (vi){madd(sum.low, w.low, a), madd(sum.high, w.high, a)};
}
#endif
