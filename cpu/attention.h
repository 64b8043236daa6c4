// Paged attention, for the lanes that the including file chose. See doc.go for the arithmetic and
// the layout of the cache.
//
// Queries that read the same keys and values, which are those of the heads that share a KV head and
// those of neighbouring rows, are computed together, up to 6, so that each is loaded once for them.

enum { tile_tokens = 16, span_tokens = 64, most_queries = 6 };

// cache_tile is the tile of K (kv 0) or V (kv 1) that holds position at.
INLINE const uint8_t *cache_tile(const qc_exec *e, const qc_phase *ph, const int32_t *table, int32_t at, int kv, int32_t head) {
	const qc_cache *c = &e->cache[ph->group];
	const int32_t page = table[at / c->block_tokens], in = at % c->block_tokens;
	return c->data + page * c->page + (((int64_t)ph->layer * 2 + kv) * c->kv_heads + head) * c->head + in / tile_tokens * c->tile;
}

// element_bytes is the size of a number in a cache of type.
INLINE int element_bytes(const int type) { return type == QC_CACHE_I8 ? 1 : type == QC_CACHE_F16 ? 2 : 4; }

// cache_load reads n numbers from number i of a tile on; those of QC_CACHE_I8 without their scale.
INLINE v16 cache_load(const uint8_t *p, int64_t i, const int n, const int type) {
	if (type == QC_CACHE_I8)
		return n == 16 ? v_load_i8((const int8_t *)p + i) : v_load_i8_n((const int8_t *)p + i, n);
	if (type == QC_CACHE_F16)
		return n == 16 ? v_load_f16((const uint16_t *)p + i) : v_load_f16_n((const uint16_t *)p + i, n);
	return n == 16 ? v_load((const float *)p + i) : v_load_n((const float *)p + i, n);
}

// tile_scales are the scales of the tokens of a tile of QC_CACHE_I8.
INLINE v16 tile_scales(const uint8_t *tile, int d) { return v_load_f16((const uint16_t *)(tile + tile_tokens * d)); }

// The memory that attending takes for head dimension d, which is rounded up to lanes.
typedef struct {
	float *query;  // [d][queries], scaled
	float *value;  // [queries][padded d]
	float *weight; // [queries][span]
	float *head;   // [d]
} workspace;

INLINE int padded(int d) { return (d + 15) / 16 * 16; }

static workspace workspace_at(uint8_t *mem, int d) {
	workspace k = {.query = (float *)mem};
	k.value = k.query + most_queries * padded(d);
	k.weight = k.value + most_queries * padded(d);
	k.head = k.weight + most_queries * span_tokens;
	return k;
}

// score sets weight[q][token] = query q · key, for tiles tiles of keys, and asks for the values, which
// lie where nothing that fetches ahead in hardware expects them.
SPECIAL void score(float *weight, const float *query, const uint8_t *const *keys, const uint8_t *const *values, int d, const int n, const int tiles, const int type) {
	v16 sum[4][most_queries];
	UNROLL for (int t = 0; t < tiles; t++)
		UNROLL for (int q = 0; q < n; q++)
			sum[t][q] = v_zero();
	for (int i = 0; i < d; i++, query += n)
		UNROLL for (int t = 0; t < tiles; t++) {
			const v16 key = cache_load(keys[t], (int64_t)i * tile_tokens, 16, type);
			if (n <= 4 && i % (4 / element_bytes(type)) == 0)
				__builtin_prefetch(values[t] + i * tile_tokens * element_bytes(type));
			UNROLL for (int q = 0; q < n; q++)
				sum[t][q] = v_fma(v_set(query[q]), key, sum[t][q]);
		}
	UNROLL for (int t = 0; t < tiles; t++)
		UNROLL for (int q = 0; q < n; q++)
			v_store(weight + q * span_tokens + t * tile_tokens, type == QC_CACHE_I8 ? v_mul(sum[t][q], tile_scales(keys[t], d)) : sum[t][q]);
}

// gather_own adds weight·value of tokens from to to to the outputs of one query.
SPECIAL void gather_own(v16 *sum, const float *weight, const uint8_t *const *values, int d, int at, int from, int to, const int vectors, const int lanes, const int type) {
	for (int t = from; t < to; t++)
		UNROLL for (int i = 0; i < vectors; i++) {
			const v16 v = cache_load(values[t / tile_tokens], (int64_t)(t % tile_tokens) * d + at + 16 * i, lanes, type);
			sum[i] = v_fma(v_set(weight[t]), v, sum[i]);
		}
}

// gather adds weight·value to vectors vectors of the outputs from column at. Query q sees the tokens
// from hidden[q] to seen[q] of the span; all see those from lead to common, if lead < common.
SPECIAL void gather(float *value, const float *weight, const uint8_t *const *values, int d, int at, int lead, int common, const int *hidden, const int *seen, const float *alpha,
	const int n, const int vectors, const int lanes, const int type) {
	v16 sum[most_queries][4];
	UNROLL for (int q = 0; q < n; q++)
		UNROLL for (int i = 0; i < vectors; i++)
			sum[q][i] = v_mul(v_load(value + q * padded(d) + at + 16 * i), v_set(alpha[q]));
	if (lead > 0)
		UNROLL for (int q = 0; q < n; q++)
			gather_own(sum[q], weight + q * span_tokens, values, d, at, hidden[q], lead < seen[q] ? lead : seen[q], vectors, lanes, type);
	int t = lead;
	for (; t < common; t++) {
		const int64_t from = (int64_t)(t % tile_tokens) * d + at;
		UNROLL for (int i = 0; i < vectors; i++) {
			const v16 v = cache_load(values[t / tile_tokens], from + 16 * i, lanes, type);
			UNROLL for (int q = 0; q < n; q++)
				sum[q][i] = v_fma(v_set(weight[q * span_tokens + t]), v, sum[q][i]);
		}
	}
	UNROLL for (int q = 0; q < n; q++)
		gather_own(sum[q], weight + q * span_tokens, values, d, at, t, seen[q], vectors, lanes, type);
	UNROLL for (int q = 0; q < n; q++)
		UNROLL for (int i = 0; i < vectors; i++)
			v_store(value + q * padded(d) + at + 16 * i, sum[q][i]);
}

// attend computes n queries of one KV head at the positions at, which do not fall. Tiles that lie
// behind the window of all of them are not touched, nor are their entries of the table.
SPECIAL void attend(const qc_exec *e, const qc_phase *ph, const int32_t *table, int32_t head, const int32_t *at, float *const *out, const workspace *k, const int n, const int type) {
	const int d = ph->head_dim;
	const int together = QC_ACCUMULATORS / n >= 4 ? 4 : QC_ACCUMULATORS / n >= 2 ? 2 : 1;
	const int32_t window = ph->window, begin = window > 0 && at[0] >= window ? at[0] - window + 1 : 0;
	v16 total[most_queries];
	float top[most_queries];
	UNROLL for (int q = 0; q < n; q++) {
		total[q] = v_zero();
		top[q] = -__builtin_inff();
	}
	memset(k->value, 0, sizeof(float) * (size_t)(n * padded(d)));
	for (int32_t span = begin / span_tokens * span_tokens; span <= at[n - 1]; span += span_tokens) {
		const int32_t most = at[n - 1] + 1 - span < span_tokens ? at[n - 1] + 1 - span : span_tokens;
		const int tiles = (most + tile_tokens - 1) / tile_tokens;
		const int first = span < begin ? (begin - span) / tile_tokens : 0;
		const uint8_t *keys[4], *values[4];
		for (int t = first; t < tiles; t++) {
			keys[t] = cache_tile(e, ph, table, span + t * tile_tokens, 0, head);
			values[t] = cache_tile(e, ph, table, span + t * tile_tokens, 1, head);
		}
		// Keys of the next span; its values are asked for when they are scored.
		if (n <= 4)
			for (int32_t next = span + span_tokens; next <= at[n - 1] && next < span + 2 * span_tokens; next += tile_tokens) {
				const uint8_t *key = cache_tile(e, ph, table, next, 0, head);
				for (int i = 0; i < d * tile_tokens * element_bytes(type); i += 64)
					__builtin_prefetch(key + i);
			}
		int t = first;
		for (; t + together <= tiles; t += together)
			score(k->weight + t * tile_tokens, k->query, keys + t, values + t, d, n, together, type);
		for (; t < tiles; t++)
			score(k->weight + t * tile_tokens, k->query, keys + t, values + t, d, n, 1, type);

		int hidden[most_queries], seen[most_queries], lead = 0, common = span_tokens;
		float alpha[most_queries];
		UNROLL for (int q = 0; q < n; q++) {
			float *weight = k->weight + q * span_tokens;
			const int32_t sees = at[q] + 1 - span;
			const int32_t hides = window > 0 ? sees - window : 0;
			seen[q] = sees < 0 ? 0 : sees < span_tokens ? sees : span_tokens;
			hidden[q] = hides < 0 ? 0 : hides < span_tokens ? hides : span_tokens;
			common = seen[q] < common ? seen[q] : common;
			lead = hidden[q];
			alpha[q] = 1;
			if (hidden[q] >= seen[q])
				continue;
			const int from = hidden[q] / tile_tokens, skip = hidden[q] % tile_tokens;
			const int full = seen[q] / tile_tokens, rest = seen[q] % tile_tokens;
			v16 most_of = v_set(top[q]);
			for (int i = from; i < full + (rest > 0); i++) {
				v16 s = v_load(weight + i * tile_tokens);
				if (i == full)
					s = v_first(rest, s, v_set(top[q]));
				if (i == from && skip)
					s = v_first(skip, v_set(top[q]), s);
				most_of = v_max(most_of, s);
			}
			const float next = v_top(most_of);
			if (next > top[q]) {
				float a[16];
				v_store(a, v_exp(v_set(top[q] - next)));
				alpha[q] = a[0];
				total[q] = v_mul(total[q], v_set(alpha[q]));
				top[q] = next;
			}
			for (int i = from; i < full + (rest > 0); i++) {
				v16 w = v_exp(v_sub(v_load(weight + i * tile_tokens), v_set(top[q])));
				if (i == full)
					w = v_first(rest, w, v_zero());
				if (i == from && skip)
					w = v_first(skip, v_zero(), w);
				total[q] = v_add(total[q], w);
				v_store(weight + i * tile_tokens, type == QC_CACHE_I8 ? v_mul(w, tile_scales(values[i], d)) : w);
			}
		}
		common = common > lead ? common : lead;
		int c = 0;
		for (; c + 16 * together <= d; c += 16 * together)
			gather(k->value, k->weight, values, d, c, lead, common, hidden, seen, alpha, n, together, 16, type);
		for (; c + 16 <= d; c += 16)
			gather(k->value, k->weight, values, d, c, lead, common, hidden, seen, alpha, n, 1, 16, type);
		if (c < d)
			gather(k->value, k->weight, values, d, c, lead, common, hidden, seen, alpha, n, 1, d - c, type);
	}
	UNROLL for (int q = 0; q < n; q++) {
		const v16 inverse = v_set(1 / v_tree(total[q]));
		for (int c = 0; c < d; c += 16) {
			const int lanes = d - c < 16 ? d - c : 16;
			v_store_n(out[q] + c, lanes, v_mul(v_load(k->value + q * padded(d) + c), inverse));
		}
	}
}

#define ATTEND(n) \
	static void attend_##n(const qc_exec *e, const qc_phase *ph, const int32_t *table, int32_t head, const int32_t *at, float *const *out, const workspace *k) { \
		switch (e->cache[0].kind) { \
		case QC_CACHE_I8: \
			attend(e, ph, table, head, at, out, k, n, QC_CACHE_I8); \
			break; \
		case QC_CACHE_F16: \
			attend(e, ph, table, head, at, out, k, n, QC_CACHE_F16); \
			break; \
		default: \
			attend(e, ph, table, head, at, out, k, n, QC_CACHE_F32); \
		} \
	}
ATTEND(1) ATTEND(2) ATTEND(3) ATTEND(4) ATTEND(6)

// A query_batch is queries that wait to be computed together.
typedef struct {
	int32_t at[most_queries], row[most_queries], head[most_queries];
	float *out[most_queries];
	int count;
} query_batch;

// attend_batch loads the first n queries of c, rotated and scaled, computes and removes them.
static void attend_batch(const qc_exec *e, const qc_phase *ph, const qc_seq *seq, int32_t kv_head, query_batch *c, const workspace *k) {
	const qc_buffer *src = &e->buffer[ph->src];
	const int d = ph->head_dim;
	for (int done = 0; done < c->count;) {
		const int left = c->count - done, n = left >= 6 ? 6 : left == 5 ? 4 : left;
		for (int q = 0; q < n; q++) {
			const float *x = src->data + (int64_t)c->row[done + q] * src->width + ph->q_col + c->head[done + q] * d;
			if (ph->rope_q) {
				rope_head(k->head, x, ph->table + (int64_t)c->at[done + q] * d, d, ph->half_pairs);
				x = k->head;
			}
			for (int i = 0; i < d; i++)
				k->query[i * n + q] = x[i] * ph->scale;
		}
		static void (*const by_count[])(const qc_exec *, const qc_phase *, const int32_t *, int32_t, const int32_t *, float *const *, const workspace *) = {
			NULL, attend_1, attend_2, attend_3, attend_4, NULL, attend_6};
		by_count[n](e, ph, e->tables + seq->table[ph->group], kv_head, c->at + done, c->out + done, k);
		done += n;
	}
	c->count = 0;
}

// What a query costs, in tokens: those it sees and what does not depend on them.
INLINE int64_t query_cost(const qc_phase *ph, int32_t position) {
	return (ph->window > 0 && position >= ph->window ? ph->window : position) + 64;
}

// attend_part computes the queries whose costs, all being lined up by sequence, KV head, row and
// head, begin in parts from to to of parts. Heads that read the same keys stay together, unless that
// leaves too little for a thread.
static void attend_part(const qc_exec *e, const qc_phase *ph, int thread, int apart, int from_part, int to_part, int parts) {
	const qc_buffer *dst = &e->buffer[ph->dst];
	const int per_kv = ph->heads / ph->kv_heads;
	const workspace k = workspace_at(e->scratch + thread * e->scratch_bytes, ph->head_dim);
	int64_t total = 0;
	for (int32_t r = 0; r < e->rows; r++)
		total += query_cost(ph, e->positions[r]) * ph->heads;
	const int64_t from = share(total, from_part, parts), to = share(total, to_part, parts);
	int64_t cost = 0;
	for (const qc_seq *seq = e->seq; seq < e->seq + e->seqs && cost < to; seq++) {
		for (int32_t kv = 0; kv < ph->kv_heads; kv++) {
			query_batch c = {.count = 0};
			for (int32_t r = seq->row; r < seq->row + seq->rows; r++) {
				const int64_t each = query_cost(ph, e->positions[r]);
				const int64_t begin = cost;
				for (int h = 0; h < per_kv; h++, cost += each) {
					const int64_t at = apart ? cost : begin;
					if (at < from || at >= to)
						continue;
					const int32_t head = kv * per_kv + h;
					c.at[c.count] = e->positions[r];
					c.row[c.count] = r;
					c.head[c.count] = head;
					c.out[c.count++] = dst->data + (int64_t)r * dst->width + head * ph->head_dim;
					if (c.count == most_queries)
						attend_batch(e, ph, seq, kv, &c, &k);
				}
			}
			attend_batch(e, ph, seq, kv, &c, &k);
		}
	}
}

// store_bytes writes d numbers of token lane into a tile of QC_CACHE_I8: number i at i·step + lane·stride.
static void store_bytes(uint8_t *tile, const float *x, int d, int32_t lane, int step, int stride) {
	v16 most = v_zero();
	for (int i = 0; i < d; i += 16)
		most = v_max(most, v_abs(v_load_n(x + i, d - i < 16 ? d - i : 16)));
	uint16_t half[16];
	v_store_f16(half, v_set(v_top(most) / 127));
	memcpy(tile + tile_tokens * d + lane * (int)sizeof *half, half, sizeof *half);
	float scale[16];
	v_store(scale, v_load_f16(half));
	const v16 inverse = v_set(scale[0] > 0 ? 1 / scale[0] : 0);
	for (int i = 0; i < d; i += 16) {
		const int lanes = d - i < 16 ? d - i : 16;
		int8_t q[16];
		v_bytes(q, v_min(v_max(v_mul(v_load_n(x + i, lanes), inverse), v_set(-127)), v_set(127)));
		for (int l = 0; l < lanes; l++)
			((int8_t *)tile)[(i + l) * step + lane * stride] = q[l];
	}
}

// store_kv writes K and V of one row and KV head, K rotated if the phase says so.
static void store_kv(const qc_exec *e, const qc_phase *ph, const int32_t *table, int32_t row, int32_t head, float *t) {
	const qc_buffer *src = &e->buffer[ph->src];
	const int d = ph->head_dim;
	const float *x = src->data + (int64_t)row * src->width, *key = x + ph->k_col + head * d, *value = x + ph->v_col + head * d;
	const int32_t at = e->positions[row], lane = at % tile_tokens;
	uint8_t *keys = (uint8_t *)cache_tile(e, ph, table, at, 0, head), *values = (uint8_t *)cache_tile(e, ph, table, at, 1, head);
	if (ph->rope_k) {
		rope_head(t, key, ph->table + (int64_t)at * d, d, ph->half_pairs);
		key = t;
	}
	switch (e->cache[0].kind) {
	case QC_CACHE_F32:
		for (int i = 0; i < d; i++)
			((float *)keys)[i * tile_tokens + lane] = key[i];
		memcpy((float *)values + (int64_t)lane * d, value, sizeof(float) * (size_t)d);
		return;
	case QC_CACHE_I8:
		store_bytes(keys, key, d, lane, tile_tokens, 1);
		store_bytes(values, value, d, lane, 1, d);
		return;
	}
	for (int i = 0; i < d; i += 16) {
		const int lanes = d - i < 16 ? d - i : 16;
		uint16_t half[16];
		v_store_f16(half, v_load_n(key + i, lanes));
		for (int l = 0; l < lanes; l++)
			((uint16_t *)keys)[(i + l) * tile_tokens + lane] = half[l];
		v_store_f16(half, v_load_n(value + i, lanes));
		memcpy((uint16_t *)values + (int64_t)lane * d + i, half, sizeof *half * (size_t)lanes);
	}
}

// store_share stores this thread's share of rows and KV heads.
static void store_share(const qc_exec *e, const qc_phase *ph, int thread, int threads) {
	const int64_t total = (int64_t)e->rows * ph->kv_heads;
	int64_t i = share(total, thread, threads);
	const int64_t to = share(total, thread + 1, threads);
	float *t = workspace_at(e->scratch + thread * e->scratch_bytes, ph->head_dim).head;
	for (const qc_seq *seq = e->seq; i < to; seq++)
		for (; i < to && i / ph->kv_heads < seq->row + seq->rows; i++)
			store_kv(e, ph, e->tables + seq->table[ph->group], (int32_t)(i / ph->kv_heads), (int32_t)(i % ph->kv_heads), t);
}

static void attention(const qc_exec *e, const qc_phase *ph, int thread, int threads) {
	if (ph->store) {
		store_share(e, ph, thread, threads);
		qc_pool_barrier(e->pool);
	}
	const int apart = (int64_t)e->rows * ph->kv_heads < 8 * threads;
	if (apart) {
		attend_part(e, ph, thread, apart, thread, thread + 1, threads);
		return;
	}
	const int32_t parts = 8 * threads;
	for (int32_t from, to; (to = take(e, ph, parts, 1, threads, &from)) > from;)
		attend_part(e, ph, thread, apart, from, to, parts);
}
