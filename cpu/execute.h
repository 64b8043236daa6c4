// One thread's part of a step, for the lanes that the including file chose.

static void rope_row(const qc_exec *e, const qc_phase *ph, int32_t row) {
	const qc_buffer *b = &e->buffer[ph->dst];
	float *x = b->data + (int64_t)row * b->width + ph->q_col;
	for (int h = 0; h < ph->heads; h++, x += ph->head_dim)
		rope_head(x, x, ph->table + (int64_t)e->positions[row] * ph->head_dim, ph->head_dim, ph->half_pairs);
}

// each_row runs a phase that treats rows alone.
static void each_row(const qc_exec *e, const qc_phase *ph, int thread, int threads) {
	const qc_buffer *dst = &e->buffer[ph->dst], *src = ph->src >= 0 ? &e->buffer[ph->src] : NULL;
	const int32_t rows = dst->per_sample ? e->samples : e->rows;
	const int32_t to = (int32_t)share(rows, thread + 1, threads);
	for (int32_t r = (int32_t)share(rows, thread, threads); r < to; r++) {
		float *out = dst->data + (int64_t)r * dst->width;
		const float *in = src ? src->data + (int64_t)r * src->width : NULL;
		switch (ph->kind) {
		case QC_EMBED:
			embed(e, ph, r);
			break;
		case QC_NORM:
			norm_row(out, in, ph->norm, dst->width, ph->eps);
			break;
		case QC_SWIGLU:
			swiglu_row(out, in, dst->width);
			break;
		case QC_GATHER:
			memcpy(out, src->data + (int64_t)e->sample_rows[r] * src->width, sizeof(float) * (size_t)dst->width);
			break;
		case QC_ROPE:
			rope_row(e, ph, r);
			break;
		}
	}
}

static void run(qc_exec *e, int thread, int threads) {
	for (int32_t i = 0; i < e->phases; i++) {
		const qc_phase *ph = &e->phase[i];
		switch (ph->kind) {
		case QC_MATMUL:
			matmul(e, ph, thread, threads);
			break;
		case QC_ATTENTION:
			attention(e, ph, thread, threads);
			break;
		case QC_STORE:
			store_share(e, ph, thread, threads);
			break;
		default:
			each_row(e, ph, thread, threads);
		}
		qc_pool_barrier(e->pool);
	}
}
