// The C side of package cpu: see doc.go for the arithmetic, plan.go for what a step is.
//
// Memory that Go hands in is used during that call only. What lasts is allocated here.
#ifndef QUIRE_CPU_NATIVE_H
#define QUIRE_CPU_NATIVE_H

#include <stddef.h>
#include <stdint.h>

// A strip is 16 rows of a weight, stored so that a thread reads one stream: lane l of every vector
// belongs to row l. A quantised part has, for each block of 32 columns,
//
//	bits 4  4 × 64 bytes; byte 4l+i of chunk c holds column 8c+i of row l in its low nibble and
//	        column 8c+4+i in its high one
//	bits 8  8 × 64 bytes; byte 4l+i of chunk c holds column 4c+i of row l
//	        scales [32/group][16], then minima [32/group][16], F16 or F32
//
// padded to 64 bytes. Stored integers are q + zero, not negative. A float part has, for each column,
// 16 numbers. Rows beyond the part's last are zero.
typedef struct {
	int32_t rows, strips;
	int32_t bits;  // 4 or 8: quantised; 16: F16; 17: BF16; 32: F32
	int32_t group; // columns that share a scale: 16 or 32
	int32_t has_min;
	int32_t wide;  // scales and minima are F32
	int32_t zero;
	int32_t block; // bytes of 32 columns of a strip, or of one column of a float part
	uint8_t *data;
} qc_part;

// A matrix is its parts, stacked by rows.
typedef struct {
	int32_t parts, rows, cols, strips;
	qc_part part[8];
} qc_matrix;

enum { QC_EMBED = 1, QC_MATMUL, QC_ATTENTION, QC_NORM, QC_SWIGLU, QC_GATHER, QC_ROPE, QC_STORE };
enum { QC_PREPARE_NONE, QC_PREPARE_NORM, QC_PREPARE_SWIGLU };

// A phase is phase of plan.go with pointers for indices. swiglu_out: the two halves of the output's
// columns are gated as they are written, so that dst is half as wide as the matrix has rows.
typedef struct {
	int32_t kind, dst, src;
	int32_t prepare, gather, accumulate, swiglu_out;
	float eps, scale;
	int32_t half_pairs, rope_q, rope_k, store;
	int32_t group, layer, heads, kv_heads, head_dim, q_col, k_col, v_col, window;
	const qc_matrix *matrix;
	const float *bias, *norm, *table;
} qc_phase;

typedef struct {
	float *data;
	int32_t width, per_sample;
} qc_buffer;

// A sequence is device.Seq; table is by group of pages.
typedef struct {
	int32_t row, rows, table[2], context;
} qc_seq;

enum { QC_CACHE_F32, QC_CACHE_F16, QC_CACHE_I8 };

// A group of the paged cache: see doc.go for its layout. page, head and tile are in bytes.
typedef struct {
	uint8_t *data;
	int64_t page, head, tile;
	int32_t block_tokens, kv_heads, kind;
} qc_cache;

typedef struct qc_pool qc_pool;

enum { QC_LINE = 16 }; // numbers in a line of a cache

typedef struct {
	qc_pool *pool;
	int32_t phases, buffers, logits;
	qc_phase *phase;
	qc_buffer *buffer;
	qc_cache cache[2];
	// Input of a matmul, shared and one for each thread; queries of each thread.
	uint8_t *input, *own_input, *scratch;
	int64_t own_bytes, scratch_bytes;
	int32_t *taken; // [phases][QC_LINE]: how much of each phase's work threads have taken in this step

	// The step that runs.
	int32_t rows, seqs, samples;
	const int32_t *tokens, *positions, *tables, *sample_rows;
	const qc_seq *seq;
} qc_exec;

// A path is the code for one instruction set.
typedef struct {
	const char *name;
	int (*works)(void);
	void (*run)(qc_exec *, int thread, int threads);
	int32_t (*argmax)(const float *x, int64_t n);
	double (*exp_row)(float *dst, const float *x, int64_t n, float shift, float scale);
} qc_path;

extern const qc_path qc_generic;
#ifdef __x86_64__
extern const qc_path qc_avx2, qc_avx512;
#endif

// pool.c. qc_pool_run calls f(arg, thread, threads) in every thread, the caller being thread 0, and
// returns when all have. One call at a time. NULL: the threads could not be started.
qc_pool *qc_pool_new(int threads);
void qc_pool_run(qc_pool *, void (*f)(void *, int, int), void *arg);
void qc_pool_barrier(qc_pool *);
void qc_pool_free(qc_pool *);

// memory.c. Zeroed, aligned to 64 bytes, in huge pages where there are any; NULL if there is none.
void *qc_map(size_t bytes);
void qc_unmap(void *, size_t bytes);

// native.c
const qc_path *qc_find(const char *name);
void qc_step(const qc_path *, qc_exec *, float *logits, int32_t rows, const int32_t *tokens, const int32_t *positions,
	int32_t seqs, const qc_seq *seq, const int32_t *tables, int32_t samples, const int32_t *sample_rows);
int64_t qc_input_bytes(const qc_matrix *, int64_t rows);
int64_t qc_scratch_bytes(const qc_phase *);
int32_t qc_call_argmax(const qc_path *, const float *x, int64_t n);
double qc_call_exp_row(const qc_path *, float *dst, const float *x, int64_t n, float shift, float scale);

#endif
