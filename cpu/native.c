#include "native.h"

#include <string.h>

const qc_path *qc_find(const char *name) {
	static const qc_path *const paths[] = {
#ifdef __x86_64__
		&qc_avx512, &qc_avx2,
#endif
		&qc_generic};
	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
		if (!strcmp(paths[i]->name, name))
			return paths[i]->works() ? paths[i] : NULL;
	return NULL;
}

typedef struct {
	const qc_path *path;
	qc_exec *exec;
} job;

static void in_thread(void *arg, int thread, int threads) {
	const job *j = arg;
	j->path->run(j->exec, thread, threads);
}

void qc_step(const qc_path *path, qc_exec *e, float *logits, int32_t rows, const int32_t *tokens, const int32_t *positions,
	int32_t seqs, const qc_seq *seq, const int32_t *tables, int32_t samples, const int32_t *sample_rows) {
	e->buffer[e->logits].data = logits;
	e->rows = rows;
	e->tokens = tokens;
	e->positions = positions;
	e->seqs = seqs;
	e->seq = seq;
	e->tables = tables;
	e->samples = samples;
	e->sample_rows = sample_rows;
	memset(e->taken, 0, sizeof *e->taken * QC_LINE * (size_t)e->phases);
	job j = {path, e};
	qc_pool_run(e->pool, in_thread, &j);
	e->buffer[e->logits].data = NULL;
}

// qc_input_bytes is what the input of a matmul takes at most: see matmul.h. Paths fill up groups of at
// most 12 rows.
int64_t qc_input_bytes(const qc_matrix *m, int64_t rows) {
	return (rows + 12) * ((int64_t)m->cols / 32 * 15 * 4 + (int64_t)m->cols * 4) + 64;
}

// qc_scratch_bytes is what a thread takes to attend: see workspace in attention.h.
int64_t qc_scratch_bytes(const qc_phase *ph) {
	const int64_t d = (ph->head_dim + 15) / 16 * 16;
	return (6 * d + 6 * d + 6 * 64 + d) * 4;
}

int32_t qc_call_argmax(const qc_path *p, const float *x, int64_t n) { return p->argmax(x, n); }

double qc_call_exp_row(const qc_path *p, float *dst, const float *x, int64_t n, float shift, float scale) {
	return p->exp_row(dst, x, n, shift, scale);
}
