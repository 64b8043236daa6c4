// Package cpu is the device that every machine has: its processor's cores.
//
// It exists to serve real models fast without a GPU, and to be the reference that other devices are
// tested against. There is one executable specification, in Go (go_*.go), which is also what runs
// where cgo is off, and C kernels for the instruction sets that matter. All of them give the same
// bits for the same step, so that a stream can stop on one machine and go on at another. That holds
// because every rounding below is specified, and because the forms that are specified are those
// that SIMD runs at full speed: one output is one lane, nothing is summed across lanes except by a
// fixed tree over sixteen.
//
// Invariants, each with a test: the same bits from every path; from every number of threads; for a
// row whatever else is in the batch, however its prompt was cut and wherever its pages lie; memory
// beyond a row's position is never used as a number.
//
// The package imports device and the standard library. It decides nothing about requests.
//
// # Numerics
//
// All arithmetic is IEEE 754 binary32, round to nearest even, subnormals kept. "fma" rounds once.
// "·" and "+" round each. Integers are exact. A row that holds a NaN or an infinity gives values
// that are not specified; they stay in that row.
//
// Tree16 adds sixteen lanes: a[l] += a[l+8] for l < 8, then +4, +2, +1.
//
// Weights. Quantised types are read as w = s·q + m over groups of G columns, with q an integer, and
// s and m binary32 numbers that are exact products of what the file stores:
//
//	type  G   q                s          m
//	Q4_0  32  nibble - 8       d          none
//	Q4_1  32  nibble           d          m
//	Q5_0  32  5 bits - 16      d          none
//	Q5_1  32  5 bits           d          m
//	Q8_0  32  int8             d          none
//	Q2_K  16  2 bits           d·scale    -(dmin·min)
//	Q3_K  16  3 bits - 4       d·(scale-32)  none
//	Q4_K  32  4 bits           d·scale    -(dmin·min)
//	Q5_K  32  5 bits           d·scale    -(dmin·min)
//	Q6_K  16  6 bits - 32      d·scale    none
//
// F16 and BF16 are converted to binary32, which is exact. With Options.ExactFloat every type
// becomes F32: s·q is exact, then + m.
//
// Quantised activations. A row is cut into blocks of 32 columns. amax is the largest |x|. If amax <
// 1e-30, sx = 0 and every q = 0. Otherwise sx = amax/127, r = 127/amax, and q = x·r rounded to the
// nearest even integer (it lies in [-127, 127]).
//
// MatMul by a quantised weight: acc = 0; for each group g in order of columns, with the block's sx,
//
//	isum = Σ qw·qx over the group (int32)
//	acc  = fma(float(isum), s·sx, acc)
//	acc  = fma(m, float(Σ qx over the group)·sx, acc)      if the type has m
//
// MatMul by a float weight: acc = 0; for each block of 32 columns (the last may be shorter)
//
//	p = 0; p = fma(x[k], w[k], p) for k in order; acc = acc + p
//
// Then acc + bias if there is one, then dst + acc if it accumulates. The parts of a stacked weight
// each keep their own type's rule.
//
// Embed: float(q)·s (exact), then + m if the type has m.
//
// RMSNorm over w columns: lane l = 0; lane l = fma(x[i], x[i], lane l) for i = l, l+16, …; sum =
// Tree16; r = 1 / sqrt(sum/float(w) + eps); dst[i] = (x[i]·r)·W[i].
//
// RoPE of the pair (a, b) by (c, s): a' = fma(a, c, -(b·s)); b' = fma(a, s, b·c).
//
// exp(x): x = min(max(x, -87), 88); n = x·log2(e) rounded to the nearest even integer; r = fma(n,
// -ln2hi, x); r = fma(n, -ln2lo, r); p = 1/7!, then p = fma(p, r, 1/k!) for k = 6 … 0; p·2ⁿ. The
// constants are the binary32 numbers nearest to log2(e) and 1/k!, ln2hi = 0x1.62e4p-1, ln2lo =
// 0x1.7f7d1cp-20. The relative error is below 2^-22, and exp(0) = 1.
//
// SwiGLU: (a / (1 + exp(-a)))·b.
//
// Attention of one row, one query head, at position p. qs[d] = q[d]·scale. Start with m = -∞, lane
// l[0:16] = 0, o[0:headDim] = 0. Tokens come in tiles of 16 and spans of 64 (4 tiles), both counted
// from position 0 of the sequence. The row sees the tokens t ≤ p, with a window of W those with t > p-W
// only. For each span that has a token it sees, and t over these:
//
//	s[t]  = 0; s[t] = fma(qs[d], K[t][d], s[t]) for d in order
//	s[t]  = s[t]·sk[t]                                             if the cache is of I8
//	m'    = max(m, max s[t]); alpha = exp(m - m'); m = m'
//	l[i]  = l[i]·alpha for each lane; o[d] = o[d]·alpha for each d
//	w[t]  = exp(s[t] - m); l[t mod 16] += w[t], t in order
//	w[t]  = w[t]·sv[t]                                             if the cache is of I8
//	o[d]  = fma(w[t], V[t][d], o[d]), t in order
//
// and at the end dst[d] = o[d]·(1/Tree16(l)). Because exp(0) = 1, the scaling by alpha may be left
// out where m did not grow; and a tile without a token that the row sees is never touched.
//
// The KV cache holds K and V rounded to nearest even if its type is F16, and attention reads them
// back exactly. Its layout is [page][layer][K|V][kv head][tile of 16 tokens], where a tile of K is
// [headDim][16 tokens] and a tile of V is [16 tokens][headDim]: scores have tokens for lanes, sums
// over V have dimensions. A second group of pages, of the layers with a window, follows the first.
//
// If its type is I8, each token's K, and its V, of each head is rounded alone, so that a token's bits
// do not depend on its neighbours: s = amax/127 rounded to binary16; q = x·(1/s), limited to ±127,
// rounded to the nearest even integer; q = 0 where s = 0. K and V above are the integers, sk and sv the
// scales. The 16 scales of a tile, as binary16, follow its 16·headDim bytes.
//
// Sampling runs in Go on every path, in binary64 where it sums; see sample.go.
package cpu
