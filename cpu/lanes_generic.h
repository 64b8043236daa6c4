// Sixteen lanes in plain C, for processors without AVX2. Loops over lanes have no branches, so that
// compilers turn them into what vectors the processor has.
#include <math.h>
#include <string.h>

#define QC_ACCUMULATORS 4
#define QC_GROUP 4
#define QC_WIDTHS {0, 1, 4, 4}
#define EACH_WIDTH(X, ...) X(__VA_ARGS__, 1) X(__VA_ARGS__, 4)

typedef struct {
	float l[16];
} v16;
typedef struct {
	int32_t l[16];
} v16i;

#define LANES for (int i = 0; i < 16; i++)

INLINE v16 v_set(float x) {
	v16 r;
	LANES r.l[i] = x;
	return r;
}
INLINE v16 v_zero(void) { return v_set(0); }
INLINE v16 v_load(const float *p) {
	v16 r;
	memcpy(r.l, p, sizeof r.l);
	return r;
}
INLINE void v_store(float *p, v16 a) { memcpy(p, a.l, sizeof a.l); }
INLINE v16 v_add(v16 a, v16 b) {
	LANES a.l[i] += b.l[i];
	return a;
}
INLINE v16 v_sub(v16 a, v16 b) {
	LANES a.l[i] -= b.l[i];
	return a;
}
INLINE v16 v_mul(v16 a, v16 b) {
	LANES a.l[i] *= b.l[i];
	return a;
}
INLINE v16 v_div(v16 a, v16 b) {
	LANES a.l[i] /= b.l[i];
	return a;
}
INLINE v16 v_fma(v16 a, v16 b, v16 c) {
	LANES c.l[i] = __builtin_fmaf(a.l[i], b.l[i], c.l[i]);
	return c;
}
INLINE v16 v_max(v16 a, v16 b) {
	LANES a.l[i] = a.l[i] > b.l[i] ? a.l[i] : b.l[i];
	return a;
}
INLINE v16 v_min(v16 a, v16 b) {
	LANES a.l[i] = a.l[i] < b.l[i] ? a.l[i] : b.l[i];
	return a;
}
INLINE v16 v_abs(v16 a) {
	LANES a.l[i] = __builtin_fabsf(a.l[i]);
	return a;
}
// Adding and taking away 1.5·2²³ leaves the nearest whole number of what is below 2²².
INLINE v16 v_round(v16 a) {
	LANES a.l[i] = (a.l[i] + 0x1.8p23f) - 0x1.8p23f;
	return a;
}
INLINE v16 v_first(int n, v16 a, v16 b) {
	LANES a.l[i] = i < n ? a.l[i] : b.l[i];
	return a;
}
INLINE v16 v_load_n(const float *p, int n) {
	v16 r = v_zero();
	memcpy(r.l, p, (size_t)n * sizeof *p);
	return r;
}
INLINE void v_store_n(float *p, int n, v16 a) { memcpy(p, a.l, (size_t)n * sizeof *p); }
INLINE float v_top(v16 a) {
	float top = a.l[0];
	LANES top = a.l[i] > top ? a.l[i] : top;
	return top;
}
// 2ⁿ for whole numbers n from -126 to 127.
INLINE v16 v_power(v16 n) {
	LANES {
		const uint32_t bits = (uint32_t)((int32_t)n.l[i] + 127) << 23;
		memcpy(&n.l[i], &bits, sizeof bits);
	}
	return n;
}
INLINE float v_tree(v16 a) {
	for (int n = 8; n > 0; n /= 2)
		for (int i = 0; i < n; i++)
			a.l[i] += a.l[i + n];
	return a.l[0];
}

INLINE float from_f16(uint16_t h) {
	const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, frac = h & 1023;
	uint32_t bits = exp == 31 ? 255u << 23 | frac << 13 : (exp + 112) << 23 | frac << 13;
	if (exp == 0) {
		const float f = (float)frac * 0x1p-24f;
		memcpy(&bits, &f, sizeof bits);
	}
	bits |= sign;
	float f;
	memcpy(&f, &bits, sizeof f);
	return f;
}
// Below 2^-14 an F16 is a multiple of 2^-24; adding 1/2 leaves it in the low bits.
INLINE uint16_t to_f16(float f) {
	uint32_t b;
	memcpy(&b, &f, sizeof b);
	const uint16_t sign = b >> 16 & 0x8000;
	b &= 0x7fffffff;
	if (b > 0x7f800000)
		return sign | 0x7e00;
	if (b >= 0x477ff000)
		return sign | 0x7c00;
	if (b >= 0x38800000)
		return sign | (uint16_t)((b + 0xfff + (b >> 13 & 1) - (112u << 23)) >> 13);
	memcpy(&f, &b, sizeof f);
	f += 0.5f;
	memcpy(&b, &f, sizeof b);
	return sign | (uint16_t)(b - 0x3f000000);
}
INLINE v16 v_load_f16(const uint16_t *p) {
	v16 r;
	LANES r.l[i] = from_f16(p[i]);
	return r;
}
INLINE v16 v_load_f16_n(const uint16_t *p, int n) {
	v16 r = v_zero();
	for (int i = 0; i < n; i++)
		r.l[i] = from_f16(p[i]);
	return r;
}
INLINE void v_store_f16(uint16_t *p, v16 a) { LANES p[i] = to_f16(a.l[i]); }
INLINE v16 v_load_i8_n(const int8_t *p, int n) {
	v16 r = v_zero();
	for (int i = 0; i < n; i++)
		r.l[i] = (float)p[i];
	return r;
}
INLINE v16 v_load_i8(const int8_t *p) { return v_load_i8_n(p, 16); }
INLINE v16 v_load_bf16(const uint16_t *p) {
	v16 r;
	LANES {
		const uint32_t bits = (uint32_t)p[i] << 16;
		memcpy(&r.l[i], &bits, sizeof bits);
	}
	return r;
}

INLINE v16 v_float(v16i a) {
	v16 r;
	LANES r.l[i] = (float)a.l[i];
	return r;
}

// v_bytes stores 16 signed bytes nearest to a, and returns their sum.
INLINE int32_t v_bytes(int8_t *p, v16 a) {
	int32_t sum = 0;
	a = v_round(a);
	LANES {
		p[i] = (int8_t)a.l[i];
		sum += p[i];
	}
	return sum;
}

// dot sets out[b] = Σ (w - 2^shift)·x over the columns of quads quads of a block, starting with quad
// first, without the 2^shift if shift < 0. x is [quads][n], minus is [n]: the negative sums of x.
SPECIAL void dot(v16i *out, const uint8_t *w, const int32_t *x, const int32_t *minus, int shift, const int bits, const int first, const int quads, const int n) {
	for (int b = 0; b < n; b++) {
		LANES out[b].l[i] = shift < 0 ? 0 : minus[b] * (1 << shift);
		for (int q = first; q < first + quads; q++) {
			const uint8_t *chunk = bits == 4 ? w + q / 2 * 64 : w + q * 64;
			const int down = bits == 4 ? q % 2 * 4 : 0, mask = bits == 4 ? 15 : 255;
			int8_t v[4];
			memcpy(v, &x[q * n + b], sizeof v);
			LANES for (int k = 0; k < 4; k++)
				out[b].l[i] += (chunk[4 * i + k] >> down & mask) * v[k];
		}
	}
}
