// Sixteen lanes in one register of AVX-512.
#include <immintrin.h>
#include <string.h>

#define QC_ACCUMULATORS 24
#define QC_GROUP 12
#define QC_WIDTHS {0, 1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12}
#define EACH_WIDTH(X, ...) X(__VA_ARGS__, 1) X(__VA_ARGS__, 2) X(__VA_ARGS__, 3) X(__VA_ARGS__, 4) X(__VA_ARGS__, 6) X(__VA_ARGS__, 8) X(__VA_ARGS__, 12)

typedef __m512 v16;
typedef __m512i v16i;

INLINE v16 v_zero(void) { return _mm512_setzero_ps(); }
INLINE v16 v_set(float x) { return _mm512_set1_ps(x); }
INLINE v16 v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
INLINE v16 v_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
INLINE v16 v_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
INLINE v16 v_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
INLINE v16 v_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
INLINE v16 v_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE v16 v_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
INLINE v16 v_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
INLINE v16 v_abs(v16 a) { return _mm512_abs_ps(a); }
INLINE v16 v_round(v16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE v16 v_first(int n, v16 a, v16 b) { return _mm512_mask_mov_ps(b, (__mmask16)((1u << n) - 1), a); }
INLINE v16 v_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
INLINE void v_store_n(float *p, int n, v16 a) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a); }
INLINE float v_top(v16 a) { return _mm512_reduce_max_ps(a); }

// 2ⁿ for whole numbers n from -126 to 127.
INLINE v16 v_power(v16 n) {
	return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

INLINE float v_tree(v16 a) {
	__m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
	__m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
	c = _mm_add_ps(c, _mm_movehl_ps(c, c));
	return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

INLINE v16 v_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE v16 v_load_f16_n(const uint16_t *p, int n) {
	return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
}
INLINE void v_store_f16(uint16_t *p, v16 a) {
	_mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE v16 v_load_i8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
INLINE v16 v_load_i8_n(const int8_t *p, int n) {
	return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), p)));
}
INLINE v16 v_load_bf16(const uint16_t *p) {
	return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

INLINE v16 v_float(v16i a) { return _mm512_cvtepi32_ps(a); }

// v_bytes stores 16 signed bytes nearest to a, and returns their sum.
INLINE int32_t v_bytes(int8_t *p, v16 a) {
	__m128i q = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a));
	_mm_storeu_si128((__m128i *)p, q);
	__m128i s = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), q);
	s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
	return _mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 1);
}

// dot sets out[b] = Σ (w - 2^shift)·x over the columns of quads quads of a block, starting with quad
// first, without the 2^shift if shift < 0. x is [quads][n], minus is [n]: the negative sums of x.
INLINE void dot(v16i *out, const uint8_t *w, const int32_t *x, const int32_t *minus, int shift, const int bits, const int first, const int quads, const int n) {
	const __m512i nibble = _mm512_set1_epi8(15);
	UNROLL for (int b = 0; b < n; b++)
		out[b] = shift < 0 ? _mm512_setzero_si512() : _mm512_sll_epi32(_mm512_set1_epi32(minus[b]), _mm_cvtsi32_si128(shift));
	if (bits == 4) {
		UNROLL for (int q = first; q < first + quads; q += 2) {
			const __m512i v = _mm512_loadu_si512(w + q * 32);
			const __m512i low = _mm512_and_si512(v, nibble), high = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
			_mm_prefetch((const char *)w + q * 32 + QC_AHEAD, _MM_HINT_T0);
			UNROLL for (int b = 0; b < n; b++)
				out[b] = _mm512_dpbusd_epi32(out[b], low, _mm512_set1_epi32(x[q * n + b]));
			UNROLL for (int b = 0; b < n; b++)
				out[b] = _mm512_dpbusd_epi32(out[b], high, _mm512_set1_epi32(x[(q + 1) * n + b]));
		}
		return;
	}
	UNROLL for (int q = first; q < first + quads; q++) {
		const __m512i v = _mm512_loadu_si512(w + q * 64);
		_mm_prefetch((const char *)w + q * 64 + QC_AHEAD, _MM_HINT_T0);
		UNROLL for (int b = 0; b < n; b++)
			out[b] = _mm512_dpbusd_epi32(out[b], v, _mm512_set1_epi32(x[q * n + b]));
	}
}
