// Sixteen lanes in two registers of AVX2.
#include <immintrin.h>
#include <string.h>

#define QC_ACCUMULATORS 6
#define QC_GROUP 8
#define QC_WIDTHS {0, 1, 2, 3, 4, 6, 6, 8}
#define EACH_WIDTH(X, ...) X(__VA_ARGS__, 1) X(__VA_ARGS__, 2) X(__VA_ARGS__, 3) X(__VA_ARGS__, 4) X(__VA_ARGS__, 6) X(__VA_ARGS__, 8)

typedef struct {
	__m256 a, b;
} v16;
typedef struct {
	__m256i a, b;
} v16i;

#define BOTH(f, x, y) ((v16){f((x).a, (y).a), f((x).b, (y).b)})

INLINE v16 v_zero(void) { return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE v16 v_set(float x) { return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE v16 v_load(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void v_store(float *p, v16 x) {
	_mm256_storeu_ps(p, x.a);
	_mm256_storeu_ps(p + 8, x.b);
}
INLINE v16 v_add(v16 x, v16 y) { return BOTH(_mm256_add_ps, x, y); }
INLINE v16 v_sub(v16 x, v16 y) { return BOTH(_mm256_sub_ps, x, y); }
INLINE v16 v_mul(v16 x, v16 y) { return BOTH(_mm256_mul_ps, x, y); }
INLINE v16 v_div(v16 x, v16 y) { return BOTH(_mm256_div_ps, x, y); }
INLINE v16 v_max(v16 x, v16 y) { return BOTH(_mm256_max_ps, x, y); }
INLINE v16 v_min(v16 x, v16 y) { return BOTH(_mm256_min_ps, x, y); }
INLINE v16 v_fma(v16 x, v16 y, v16 z) {
	return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
INLINE v16 v_abs(v16 x) {
	const __m256 sign = _mm256_set1_ps(-0.0f);
	return (v16){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
INLINE v16 v_round(v16 x) {
	return (v16){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
		_mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
INLINE v16 v_first(int n, v16 x, v16 y) {
	const __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
	const __m256 a = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), at));
	const __m256 b = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), at));
	return (v16){_mm256_blendv_ps(y.a, x.a, a), _mm256_blendv_ps(y.b, x.b, b)};
}
INLINE v16 v_load_n(const float *p, int n) {
	float t[16] = {0};
	memcpy(t, p, (size_t)n * sizeof *t);
	return v_load(t);
}
INLINE void v_store_n(float *p, int n, v16 x) {
	float t[16];
	v_store(t, x);
	memcpy(p, t, (size_t)n * sizeof *t);
}
INLINE float v_top(v16 x) {
	__m256 a = _mm256_max_ps(x.a, x.b);
	__m128 c = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
	c = _mm_max_ps(c, _mm_movehl_ps(c, c));
	return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

INLINE __m256 power8(__m256 n) {
	return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
// 2ⁿ for whole numbers n from -126 to 127.
INLINE v16 v_power(v16 n) { return (v16){power8(n.a), power8(n.b)}; }

INLINE float v_tree(v16 x) {
	__m256 b = _mm256_add_ps(x.a, x.b);
	__m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
	c = _mm_add_ps(c, _mm_movehl_ps(c, c));
	return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

INLINE v16 v_load_f16(const uint16_t *p) {
	return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
INLINE v16 v_load_f16_n(const uint16_t *p, int n) {
	uint16_t t[16] = {0};
	memcpy(t, p, (size_t)n * sizeof *t);
	return v_load_f16(t);
}
INLINE void v_store_f16(uint16_t *p, v16 x) {
	_mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
	_mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE v16 v_load_i8(const int8_t *p) {
	return (v16){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
		_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}
INLINE v16 v_load_i8_n(const int8_t *p, int n) {
	int8_t t[16] = {0};
	memcpy(t, p, (size_t)n);
	return v_load_i8(t);
}
INLINE v16 v_load_bf16(const uint16_t *p) {
	return (v16){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16)),
		_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 8))), 16))};
}

INLINE v16 v_float(v16i x) { return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

// v_bytes stores 16 signed bytes nearest to x, and returns their sum.
INLINE int32_t v_bytes(int8_t *p, v16 x) {
	const __m256i a = _mm256_cvtps_epi32(x.a), b = _mm256_cvtps_epi32(x.b);
	const __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
	_mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
	const __m256i s = _mm256_add_epi32(a, b);
	__m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
	t = _mm_add_epi32(t, _mm_unpackhi_epi64(t, t));
	return _mm_cvtsi128_si32(t) + _mm_extract_epi32(t, 1);
}

// in_order keeps the compiler from adding integers in another order, for which it has not the registers.
INLINE __m256i in_order(__m256i x) {
	__asm__("" : "+x"(x));
	return x;
}

// half_dot computes the lanes of one half of dot. Products of nibbles fit 16 bits for all of a
// block: 8·2·15·127 < 2^15. Products of bytes fit for one pair, with the sign moved to x.
INLINE void half_dot(__m256i *out, const uint8_t *w, const int32_t *x, const int32_t *minus, int shift, const int bits, const int first, const int quads, const int n) {
	const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
	UNROLL for (int b = 0; b < n; b++)
		out[b] = _mm256_setzero_si256();
	if (bits == 4) {
		UNROLL for (int q = first; q < first + quads; q += 2) {
			const __m256i v = _mm256_loadu_si256((const __m256i *)(w + q * 32));
			const __m256i low = _mm256_and_si256(v, nibble), high = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
			_mm_prefetch((const char *)w + q * 32 + QC_AHEAD, _MM_HINT_T0);
			UNROLL for (int b = 0; b < n; b++)
				out[b] = in_order(_mm256_add_epi16(out[b], _mm256_maddubs_epi16(low, _mm256_set1_epi32(x[q * n + b]))));
			UNROLL for (int b = 0; b < n; b++)
				out[b] = in_order(_mm256_add_epi16(out[b], _mm256_maddubs_epi16(high, _mm256_set1_epi32(x[(q + 1) * n + b]))));
		}
		UNROLL for (int b = 0; b < n; b++) {
			out[b] = _mm256_madd_epi16(out[b], ones);
			if (shift >= 0)
				out[b] = _mm256_add_epi32(out[b], _mm256_sll_epi32(_mm256_set1_epi32(minus[b]), _mm_cvtsi32_si128(shift)));
		}
		return;
	}
	const __m256i zero = _mm256_set1_epi8(shift < 0 ? 0 : (char)(1 << shift));
	UNROLL for (int q = first; q < first + quads; q++) {
		const __m256i v = _mm256_sub_epi8(_mm256_loadu_si256((const __m256i *)(w + q * 64)), zero);
		const __m256i size = _mm256_abs_epi8(v);
		_mm_prefetch((const char *)w + q * 64 + QC_AHEAD, _MM_HINT_T0);
		UNROLL for (int b = 0; b < n; b++) {
			const __m256i p = _mm256_maddubs_epi16(size, _mm256_sign_epi8(_mm256_set1_epi32(x[q * n + b]), v));
			out[b] = in_order(_mm256_add_epi32(out[b], _mm256_madd_epi16(p, ones)));
		}
	}
}

// dot sets out[b] = Σ (w - 2^shift)·x over the columns of quads quads of a block, starting with quad
// first, without the 2^shift if shift < 0. x is [quads][n], minus is [n]: the negative sums of x.
INLINE void dot(v16i *out, const uint8_t *w, const int32_t *x, const int32_t *minus, int shift, const int bits, const int first, const int quads, const int n) {
	__m256i t[QC_GROUP];
	half_dot(t, w, x, minus, shift, bits, first, quads, n);
	UNROLL for (int b = 0; b < n; b++)
		out[b].a = t[b];
	half_dot(t, w + 32, x, minus, shift, bits, first, quads, n);
	UNROLL for (int b = 0; b < n; b++)
		out[b].b = t[b];
}
