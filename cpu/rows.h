// Arithmetic on rows, for the lanes that the including file chose: see doc.go.

// share is where part i of n parts of total begins.
INLINE int64_t share(int64_t total, int64_t i, int64_t n) { return total * i / n; }

// take claims work of a phase for a thread: units from *from to the result, which are equal when none
// is left. Threads take less and less, so that they end together although one of them may have lost
// its core for a while to another process. least is the fewest units worth the trip.
INLINE int32_t take(const qc_exec *e, const qc_phase *ph, int32_t total, int32_t least, int threads, int32_t *from) {
	int32_t *taken = e->taken + (ph - e->phase) * QC_LINE;
	int32_t at = __atomic_load_n(taken, __ATOMIC_RELAXED), n;
	do {
		n = (total - at) / (threads == 1 ? 1 : 2 * threads);
		n = n > least ? n : least;
		n = n < total - at ? n : total - at;
		*from = at;
	} while (n > 0 && !__atomic_compare_exchange_n(taken, &at, at + n, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return *from + n;
}

INLINE v16 v_exp(v16 x) {
	x = v_min(v_max(x, v_set(-87)), v_set(88));
	const v16 n = v_round(v_mul(x, v_set(0x1.715476p+0f)));
	v16 r = v_fma(n, v_set(-0x1.62e4p-1f), x);
	r = v_fma(n, v_set(-0x1.7f7d1cp-20f), r);
	v16 p = v_set(1.0f / 5040);
	p = v_fma(p, r, v_set(1.0f / 720));
	p = v_fma(p, r, v_set(1.0f / 120));
	p = v_fma(p, r, v_set(1.0f / 24));
	p = v_fma(p, r, v_set(1.0f / 6));
	p = v_fma(p, r, v_set(0.5f));
	p = v_fma(p, r, v_set(1));
	p = v_fma(p, r, v_set(1));
	return v_mul(p, v_power(n));
}

// swish is silu(a)·b.
INLINE v16 swish(v16 a, v16 b) {
	return v_mul(v_div(a, v_add(v_set(1), v_exp(v_sub(v_zero(), a)))), b);
}

// norm_factor is 1/sqrt(mean(x²)+eps).
INLINE float norm_factor(const float *x, int n, float eps) {
	v16 sum = v_zero();
	int i = 0;
	for (; i + 16 <= n; i += 16) {
		const v16 v = v_load(x + i);
		sum = v_fma(v, v, sum);
	}
	if (i < n) {
		const v16 v = v_load_n(x + i, n - i);
		sum = v_fma(v, v, sum);
	}
	const float mean = v_tree(sum) / (float)n;
	return 1 / __builtin_sqrtf(mean + eps);
}

static void norm_row(float *dst, const float *x, const float *w, int n, float eps) {
	const v16 factor = v_set(norm_factor(x, n, eps));
	for (int i = 0; i < n; i += 16) {
		const int lanes = n - i < 16 ? n - i : 16;
		v_store_n(dst + i, lanes, v_mul(v_mul(v_load_n(x + i, lanes), factor), v_load_n(w + i, lanes)));
	}
}

static void swiglu_row(float *dst, const float *x, int n) {
	for (int i = 0; i < n; i += 16) {
		const int lanes = n - i < 16 ? n - i : 16;
		v_store_n(dst + i, lanes, swish(v_load_n(x + i, lanes), v_load_n(x + n + i, lanes)));
	}
}

// rope_head rotates n elements of x into dst, which may be x, by a row of the table.
static void rope_head(float *dst, const float *x, const float *table, int n, int half_pairs) {
	const int pairs = n / 2;
	if (half_pairs) {
		for (int i = 0; i < pairs; i++) {
			const float a = x[i], b = x[i + pairs], c = table[i], s = table[pairs + i];
			dst[i] = __builtin_fmaf(a, c, -(b * s));
			dst[i + pairs] = __builtin_fmaf(a, s, b * c);
		}
		return;
	}
	for (int i = 0; i < pairs; i++) {
		const float a = x[2 * i], b = x[2 * i + 1], c = table[i], s = table[pairs + i];
		dst[2 * i] = __builtin_fmaf(a, c, -(b * s));
		dst[2 * i + 1] = __builtin_fmaf(a, s, b * c);
	}
}

// argmax returns the index of the largest element, the first among equals; NaNs are skipped.
static int32_t argmax(const float *x, int64_t n) {
	float top = -__builtin_inff();
	int64_t i = 0;
	v16 most = v_set(top);
	for (; i + 16 <= n; i += 16)
		most = v_max(v_load(x + i), most); // of a NaN and another, the second
	for (top = v_top(most); i < n; i++)
		top = x[i] > top ? x[i] : top;
	for (i = 0; i < n; i++)
		if (x[i] == top)
			return (int32_t)i;
	return 0;
}

// exp_row sets dst to exp((x - shift)·scale), 0 for NaN and -∞, and returns the sum: lane i mod 16 in
// order of i, then the tree, in binary64.
static double exp_row(float *dst, const float *x, int64_t n, float shift, float scale) {
	double lanes[16] = {0};
	const v16 by = v_set(shift), times = v_set(scale);
	for (int64_t i = 0; i < n; i += 16) {
		const int left = n - i < 16 ? (int)(n - i) : 16;
		float in[16], out[16];
		v_store(in, v_load_n(x + i, left));
		v_store(out, v_exp(v_mul(v_sub(v_load(in), by), times)));
		for (int l = 0; l < 16; l++) {
			out[l] = l < left && in[l] > -__builtin_inff() ? out[l] : 0;
			lanes[l] += (double)out[l];
		}
		v_store_n(dst + i, left, v_load(out));
	}
	for (int w = 8; w > 0; w /= 2)
		for (int l = 0; l < w; l++)
			lanes[l] += lanes[l + w];
	return lanes[0];
}
