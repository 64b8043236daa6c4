// Matrix times rows, for the lanes that the including file chose.
//
// Input rows lie in groups of at most QC_GROUP, those of a group next to each other, so that a kernel reads
// one stream of weights and one of inputs. A quantised group of n rows has, for each block of 32
// columns, [8 quads of columns][n] 4 signed bytes, then [n] each of: scale, scale·sum, -sum; and if
// the matrix has groups of 16 columns, for the first and for the second half, scale·sum and -sum.
// A float group has [columns][n].

enum { wide_words = 15, narrow_words = 11, group_rows = QC_GROUP };

INLINE int has_quantised(const qc_matrix *m) {
	int any = 0;
	for (int i = 0; i < m->parts; i++)
		any |= m->part[i].bits <= 8;
	return any;
}

INLINE int has_floats(const qc_matrix *m) {
	int any = 0;
	for (int i = 0; i < m->parts; i++)
		any |= m->part[i].bits > 8;
	return any;
}

INLINE int block_words(const qc_matrix *m) {
	int words = narrow_words;
	for (int i = 0; i < m->parts; i++)
		if (m->part[i].bits <= 8 && m->part[i].group == 16)
			words = wide_words;
	return words;
}

// An input is the rows of a matmul, prepared.
typedef struct {
	int32_t rows, cols, words;
	int32_t *quantised; // NULL if no part wants it
	float *floats;      // the same
} input;

static input input_at(uint8_t *mem, const qc_matrix *m, int32_t rows) {
	input in = {.rows = rows, .cols = m->cols, .words = block_words(m)};
	const int64_t padded = (rows + group_rows - 1) / group_rows * group_rows;
	if (has_quantised(m)) {
		in.quantised = (int32_t *)mem;
		mem += padded * (m->cols / 32) * wide_words * 4;
	}
	if (has_floats(m))
		in.floats = (float *)mem;
	return in;
}

// group_width is the number of rows that the kernel computes for left rows: those beyond are zero.
INLINE int group_width(int left) {
	static const uint8_t widths[group_rows] = QC_WIDTHS;
	return left >= group_rows ? group_rows : widths[left];
}

// quantise_block writes block j of row b of a group of n rows.
INLINE void quantise_block(const input *in, int32_t *group, int n, int j, int b, v16 x0, v16 x1) {
	int32_t *block = group + (int64_t)j * in->words * n + b;
	const float top = v_top(v_max(v_abs(x0), v_abs(x1)));
	float scale = 0;
	int32_t sum0 = 0, sum1 = 0;
	int8_t q[32] = {0};
	if (top >= 1e-30f) {
		scale = top / 127;
		const v16 r = v_set(127 / top);
		sum0 = v_bytes(q, v_mul(x0, r));
		sum1 = v_bytes(q + 16, v_mul(x1, r));
	}
	for (int i = 0; i < 8; i++)
		memcpy(block + i * n, q + 4 * i, 4);
	float *f = (float *)block;
	f[8 * n] = scale;
	f[9 * n] = (float)(sum0 + sum1) * scale;
	block[10 * n] = -(sum0 + sum1);
	if (in->words == wide_words) {
		f[11 * n] = (float)sum0 * scale;
		block[12 * n] = -sum0;
		f[13 * n] = (float)sum1 * scale;
		block[14 * n] = -sum1;
	}
}

// A source is a row that a matmul reads, and what becomes of its elements first.
typedef struct {
	const float *x, *up, *norm;
	v16 factor;
	int prepare;
} source;

INLINE source source_of(const qc_exec *e, const qc_phase *ph, int32_t row, int cols) {
	const qc_buffer *from = &e->buffer[ph->src];
	if (ph->gather)
		row = e->sample_rows[row];
	source s = {.x = from->data + (int64_t)row * from->width, .norm = ph->norm, .prepare = ph->prepare};
	s.up = s.x + cols;
	s.factor = v_set(s.prepare == QC_PREPARE_NORM ? norm_factor(s.x, cols, ph->eps) : 0);
	return s;
}

INLINE v16 source_load(const source *s, int at, int n) {
	v16 x = n == 16 ? v_load(s->x + at) : v_load_n(s->x + at, n);
	if (s->prepare == QC_PREPARE_NORM)
		x = v_mul(v_mul(x, s->factor), n == 16 ? v_load(s->norm + at) : v_load_n(s->norm + at, n));
	else if (s->prepare == QC_PREPARE_SWIGLU)
		x = swish(x, n == 16 ? v_load(s->up + at) : v_load_n(s->up + at, n));
	return x;
}

// prepare_rows prepares rows from to to of the input, columns of blocks j0 to j1.
static void prepare_rows(const qc_exec *e, const qc_phase *ph, const input *in, int from, int to, int j0, int j1) {
	for (int r = from; r < to; r++) {
		const int first = r / group_rows * group_rows, b = r - first, n = group_width(in->rows - first);
		const source s = source_of(e, ph, r, in->cols);
		for (int j = j0; j < j1; j++) {
			const int left = in->cols - 32 * j;
			const v16 x0 = source_load(&s, 32 * j, left < 16 ? left : 16);
			const v16 x1 = left > 16 ? source_load(&s, 32 * j + 16, left < 32 ? left - 16 : 16) : v_zero();
			if (in->quantised) {
				int32_t *group = in->quantised + (int64_t)first * (in->cols / 32) * in->words;
				quantise_block(in, group, n, j, b, x0, x1);
				for (int pad = r + 1 == in->rows ? b + 1 : n; pad < n; pad++)
					quantise_block(in, group, n, j, pad, v_zero(), v_zero());
			}
			if (in->floats) {
				float t[32];
				v_store(t, x0);
				v_store(t + 16, x1);
				float *group = in->floats + (int64_t)first * in->cols + (int64_t)32 * j * n + b;
				for (int i = 0; i < 32 && i < left; i++) {
					group[i * n] = t[i];
					for (int pad = r + 1 == in->rows ? 1 : n; b + pad < n; pad++)
						group[i * n + pad] = 0;
				}
			}
		}
	}
}

// A kernel multiplies a strip by a group of rows: out is [rows][16].
typedef void kernel(float *out, const qc_part *, const uint8_t *w, const void *x, int words, int cols);

INLINE v16 load_scales(const uint8_t *p, const int wide) {
	return wide ? v_load((const float *)p) : v_load_f16((const uint16_t *)p);
}

// strip_quantised is the kernel of quantised parts; all but the pointers are known when it is compiled.
SPECIAL void strip_quantised(float *out, const qc_part *p, const uint8_t *w, const void *x, int words, int cols,
	const int bits, const int group, const int has_min, const int wide, const int n) {
	const int quads = group / 4, groups = 32 / group, size = wide ? 64 : 32, shift = p->zero ? __builtin_ctz((unsigned)p->zero) : -1;
	const int32_t *block = x;
	v16 acc[group_rows];
	UNROLL for (int b = 0; b < n; b++)
		acc[b] = v_zero();
	for (int j = 0; j < cols / 32; j++, w += p->block, block += words * n) {
		const uint8_t *scales = w + bits * 64;
		UNROLL for (int g = 0; g < groups; g++) {
			// Word 8 is the scale; then scale·sum and -sum of the block, of its first and second half.
			const int at = groups == 1 ? 9 : 11 + 2 * g;
			const float *f = (const float *)block;
			v16i sum[group_rows];
			dot(sum, w, block, block + (at + 1) * n, has_min ? -1 : shift, bits, g * quads, quads, n);
			const v16 s = load_scales(scales + g * size, wide);
			UNROLL for (int b = 0; b < n; b++)
				acc[b] = v_fma(v_float(sum[b]), v_mul(s, v_set(f[8 * n + b])), acc[b]);
			if (has_min) {
				const v16 m = load_scales(scales + (groups + g) * size, wide);
				UNROLL for (int b = 0; b < n; b++)
					acc[b] = v_fma(m, v_set(f[at * n + b]), acc[b]);
			}
		}
	}
	UNROLL for (int b = 0; b < n; b++)
		v_store(out + 16 * b, acc[b]);
}

// strip_floats is the kernel of F16 (16), BF16 (17) and F32 (32) parts.
SPECIAL void strip_floats(float *out, const uint8_t *w, const float *x, int cols, const int bits, const int n) {
	v16 acc[group_rows], sum[group_rows];
	UNROLL for (int b = 0; b < n; b++)
		acc[b] = v_zero();
	for (int k = 0; k < cols;) {
		const int end = cols - k < 32 ? cols : k + 32;
		UNROLL for (int b = 0; b < n; b++)
			sum[b] = v_zero();
		for (; k < end; k++, x += n) {
			const v16 v = bits == 32 ? v_load((const float *)w) : bits == 16 ? v_load_f16((const uint16_t *)w) : v_load_bf16((const uint16_t *)w);
			w += bits == 32 ? 64 : 32;
			UNROLL for (int b = 0; b < n; b++)
				sum[b] = v_fma(v_set(x[b]), v, sum[b]);
		}
		UNROLL for (int b = 0; b < n; b++)
			acc[b] = v_add(acc[b], sum[b]);
	}
	UNROLL for (int b = 0; b < n; b++)
		v_store(out + 16 * b, acc[b]);
}

#define QUANTISED(bits, group, min, wide, n) \
	static void strip_##bits##_##group##_##min##_##wide##_##n(float *out, const qc_part *p, const uint8_t *w, const void *x, int words, int cols) { \
		strip_quantised(out, p, w, x, words, cols, bits, group, min, wide, n); \
	}
#define FLOATS(bits, n) \
	static void strip_##bits##_##n(float *out, const qc_part *p, const uint8_t *w, const void *x, int words, int cols) { \
		(void)p, (void)words; \
		strip_floats(out, w, x, cols, bits, n); \
	}
EACH_WIDTH(QUANTISED, 4, 32, 0, 0) // Q4_0
EACH_WIDTH(QUANTISED, 4, 32, 1, 0) // Q4_1
EACH_WIDTH(QUANTISED, 8, 32, 0, 0) // Q5_0, Q8_0
EACH_WIDTH(QUANTISED, 8, 32, 1, 0) // Q5_1
EACH_WIDTH(QUANTISED, 4, 32, 1, 1) // Q4_K
EACH_WIDTH(QUANTISED, 8, 32, 1, 1) // Q5_K
EACH_WIDTH(QUANTISED, 4, 16, 1, 1) // Q2_K
EACH_WIDTH(QUANTISED, 4, 16, 0, 1) // Q3_K
EACH_WIDTH(QUANTISED, 8, 16, 0, 1) // Q6_K
EACH_WIDTH(FLOATS, 16)
EACH_WIDTH(FLOATS, 17)
EACH_WIDTH(FLOATS, 32)

// A name for each width; there is none where group_width does not give it.
#define WIDTH(name, n) [n] = name##_##n,
#define ROW(name) {EACH_WIDTH(WIDTH, name)}
static kernel *const kernels[][group_rows + 1] = {
	ROW(strip_4_32_0_0), ROW(strip_4_32_1_0), ROW(strip_8_32_0_0), ROW(strip_8_32_1_0), ROW(strip_4_32_1_1), ROW(strip_8_32_1_1),
	ROW(strip_4_16_1_1), ROW(strip_4_16_0_1), ROW(strip_8_16_0_1), ROW(strip_16), ROW(strip_17), ROW(strip_32),
};

static kernel *const *kernels_of(const qc_part *p) {
	if (p->bits > 8)
		return kernels[p->bits == 16 ? 9 : p->bits == 17 ? 10 : 11];
	if (p->group == 16)
		return kernels[p->bits == 8 ? 8 : p->has_min ? 6 : 7];
	if (p->bits == 4)
		return kernels[!p->has_min ? 0 : p->wide ? 4 : 1];
	return kernels[!p->has_min ? 2 : p->wide ? 5 : 3];
}

// A strip of a matrix, with what its part has in common.
typedef struct {
	const qc_part *part;
	const uint8_t *w;
	int64_t stride;
	int32_t first_row; // of the matrix
	kernel *const *kernel;
} strip;

static strip strip_at(const qc_matrix *m, int32_t s) {
	int32_t row = 0;
	const qc_part *p = m->part;
	for (; s >= p->strips; p++) {
		s -= p->strips;
		row += p->rows;
	}
	const int64_t stride = (int64_t)p->block * (p->bits <= 8 ? m->cols / 32 : m->cols);
	return (strip){p, p->data + s * stride, stride, row + 16 * s, kernels_of(p)};
}

INLINE void multiply(float *out, const strip *s, const input *in, int32_t first, int n) {
	const void *x = s->part->bits <= 8 ? (const void *)(in->quantised + (int64_t)first * (in->cols / 32) * in->words) : in->floats + (int64_t)first * in->cols;
	s->kernel[n](out, s->part, s->w, x, in->words, in->cols);
}

// finished is out with the bias of its n lanes added.
INLINE v16 finished(const float *out, const float *bias, int n) {
	v16 v = v_load(out);
	return bias ? v_add(v, n == 16 ? v_load(bias) : v_load_n(bias, n)) : v;
}

// multiply_strips computes strips from to to for all input rows. Strips are outermost, for a strip
// stays in the first-level cache while the rows of a tile stream past it from the second; tiles keep
// the rows within that.
static void multiply_strips(const qc_exec *e, const qc_phase *ph, const input *in, int from, int to) {
	_Alignas(64) float out[2][group_rows * 16];
	const qc_matrix *m = ph->matrix;
	const qc_buffer *dst = &e->buffer[ph->dst];
	const int64_t row_bytes = (int64_t)in->cols / 32 * in->words * 4 + (in->floats ? (int64_t)in->cols * 4 : 0) + 1;
	const int64_t fit = (384 << 10) / row_bytes / group_rows * group_rows;
	const int tile = fit < group_rows ? group_rows : (int)fit;
	for (int32_t top = 0; top < in->rows; top += tile) {
		const int32_t end = in->rows - top < tile ? in->rows : top + tile;
		for (int32_t i = from; i < to; i++) {
			const strip s = strip_at(m, i);
			const strip up = ph->swiglu_out ? strip_at(m, i + m->strips / 2) : s;
			const int32_t left = s.part->rows - (int32_t)((s.w - s.part->data) / s.stride) * 16;
			const int lanes = left < 16 ? left : 16;
			for (int32_t first = top; first < end; first += group_rows) {
				const int n = group_width(in->rows - first);
				multiply(out[0], &s, in, first, n);
				if (ph->swiglu_out)
					multiply(out[1], &up, in, first, n);
				for (int b = 0; b < n && first + b < in->rows; b++) {
					float *to_row = dst->data + (int64_t)(first + b) * dst->width + s.first_row;
					v16 v = finished(out[0] + 16 * b, ph->bias ? ph->bias + s.first_row : NULL, lanes);
					if (ph->swiglu_out)
						v = swish(v, finished(out[1] + 16 * b, ph->bias ? ph->bias + up.first_row : NULL, lanes));
					if (lanes == 16) {
						v_store(to_row, ph->accumulate ? v_add(v_load(to_row), v) : v);
					} else {
						v_store_n(to_row, lanes, ph->accumulate ? v_add(v_load_n(to_row, lanes), v) : v);
					}
				}
			}
		}
	}
}

// matmul: few rows are prepared by every thread for itself, which is cheaper than to meet; many are
// shared out by rows, and what is between by columns, so that threads do not write the same lines.
static void matmul(const qc_exec *e, const qc_phase *ph, int thread, int threads) {
	const qc_matrix *m = ph->matrix;
	const int32_t rows = e->buffer[ph->dst].per_sample ? e->samples : e->rows;
	const int32_t blocks = (m->cols + 31) / 32;
	const int alone = rows == 1 && threads > 1;
	const input in = input_at(alone ? e->own_input + thread * e->own_bytes : e->input, m, rows);
	if (alone) {
		prepare_rows(e, ph, &in, 0, rows, 0, blocks);
	} else {
		const int32_t groups = (rows + group_rows - 1) / group_rows;
		if (groups >= 2 * threads) {
			const int64_t to = share(groups, thread + 1, threads) * group_rows;
			prepare_rows(e, ph, &in, (int)share(groups, thread, threads) * group_rows, to < rows ? (int)to : rows, 0, blocks);
		} else {
			prepare_rows(e, ph, &in, 0, rows, (int)share(blocks, thread, threads), (int)share(blocks, thread + 1, threads));
		}
		qc_pool_barrier(e->pool);
	}
	const int32_t strips = ph->swiglu_out ? m->strips / 2 : m->strips;
	const int32_t least = rows < 4 ? 4 : 1;
	for (int32_t from, to; (to = take(e, ph, strips, least, threads, &from)) > from;)
		multiply_strips(e, ph, &in, from, to);
}

// embed looks a token up in the packed matrix.
static void embed(const qc_exec *e, const qc_phase *ph, int32_t row) {
	const qc_matrix *m = ph->matrix;
	float *dst = e->buffer[ph->dst].data + (int64_t)row * e->buffer[ph->dst].width;
	int32_t at = e->tokens[row], i = 0;
	for (; at >= m->part[i].rows; i++)
		at -= m->part[i].rows;
	const qc_part *p = &m->part[i];
	const int lane = at % 16;
	const uint8_t *w = p->data + (int64_t)(at / 16) * p->block * (p->bits <= 8 ? m->cols / 32 : m->cols);
	float lanes[16];
	if (p->bits > 8) {
		for (int k = 0; k < m->cols; k++, w += p->block) {
			v_store(lanes, p->bits == 32 ? v_load((const float *)w) : p->bits == 16 ? v_load_f16((const uint16_t *)w) : v_load_bf16((const uint16_t *)w));
			dst[k] = lanes[lane];
		}
		return;
	}
	const int groups = 32 / p->group, size = p->wide ? 64 : 32;
	for (int j = 0; j < m->cols / 32; j++, w += p->block) {
		const uint8_t *scales = w + p->bits * 64;
		for (int g = 0; g < groups; g++) {
			v_store(lanes, load_scales(scales + g * size, p->wide));
			const float s = lanes[lane];
			float min = 0;
			if (p->has_min) {
				v_store(lanes, load_scales(scales + (groups + g) * size, p->wide));
				min = lanes[lane];
			}
			for (int k = g * p->group; k < (g + 1) * p->group; k++) {
				const uint8_t byte = p->bits == 4 ? w[k / 8 * 64 + 4 * lane + k % 4] >> (k / 4 % 2 * 4) & 15 : w[k / 4 * 64 + 4 * lane + k % 4];
				const float v = s * (float)(byte - p->zero);
				dst[32 * j + k] = p->has_min ? v + min : v;
			}
		}
	}
}
