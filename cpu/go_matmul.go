package cpu

// embed looks up rows of the embedding.
func (e *goExecutor) embed(ph *phase) {
	mat := e.plan.weights[ph.w].packed.(*goMatrix)
	for r, token := range e.step.tokens {
		mat.rowInto(e.row(ph.dst, r), int(token))
	}
}

// rowInto dequantises row i.
func (m *goMatrix) rowInto(dst []float32, i int) {
	for _, p := range m.parts {
		if i >= p.rows {
			i -= p.rows
			continue
		}
		if p.floats != nil {
			copy(dst, p.floats[i*p.cols:(i+1)*p.cols])
			return
		}
		for c, q := range p.q[i*p.cols : (i+1)*p.cols] {
			g := (i*p.cols + c) / p.group
			w := float32(p.s[g] * float32(q))
			if p.m != nil {
				w += p.m[g]
			}
			dst[c] = w
		}
		return
	}
}

// matMul prepares its input rows, then computes outputs, split by rows of the weight.
func (e *goExecutor) matMul(ph *phase) {
	w := e.plan.weights[ph.w]
	mat := w.packed.(*goMatrix)
	rows, cols := e.height(ph.dst), w.cols
	quant := false
	for i := range mat.parts {
		quant = quant || mat.parts[i].group != 0
	}
	e.k.parallel(rows, 1, func(from, to int) {
		for r := from; r < to; r++ {
			e.prepare(ph, r, e.input[r*cols:(r+1)*cols], quant)
		}
	})
	e.k.parallel(w.rows, 16, func(from, to int) {
		base := 0
		for i := range mat.parts {
			p := &mat.parts[i]
			for n := max(from-base, 0); n < min(to-base, p.rows); n++ {
				for r := range rows {
					var acc float32
					if p.floats != nil {
						acc = dotFloat(e.input[r*cols:(r+1)*cols], p.floats[n*cols:(n+1)*cols])
					} else {
						acc = e.dotQuant(p, n, r)
					}
					out := &e.row(ph.dst, r)[base+n]
					if ph.bias >= 0 {
						acc += e.plan.weights[ph.bias].vector[base+n]
					}
					if ph.accumulate {
						acc = *out + acc
					}
					*out = acc
				}
			}
			base += p.rows
		}
	})
}

// prepare brings input row r of a matmul to x, and quantises it if some part wants that.
func (e *goExecutor) prepare(ph *phase, r int, x []float32, quant bool) {
	at := r
	if ph.gather {
		at = int(e.step.sampleRows[r])
	}
	src := e.row(ph.src, at)
	switch ph.prepare {
	case prepareNone:
		copy(x, src)
	case prepareNorm:
		rmsNorm(x, src, e.plan.weights[ph.norm].vector, ph.eps)
	case prepareSwiGLU:
		swiGLU(x, src)
	}
	if !quant {
		return
	}
	cols := len(x)
	q, sums := e.quant[r*cols:(r+1)*cols], e.sums[r*cols/16:(r+1)*cols/16]
	quantizeRow(q, e.scales[r*cols/32:(r+1)*cols/32], x)
	for j := range sums {
		sums[j] = 0
		for _, v := range q[16*j : 16*j+16] {
			sums[j] += int32(v)
		}
	}
}

// dotFloat is the product of a row with a float row of the weight.
func dotFloat(x, w []float32) float32 {
	var acc float32
	for len(x) > 0 {
		n := min(32, len(x))
		var p float32
		for k, v := range x[:n] {
			p = fma32(v, w[k], p)
		}
		acc += p
		x, w = x[n:], w[n:]
	}
	return acc
}

// dotQuant is the product of prepared row r with row n of a quantised part.
func (e *goExecutor) dotQuant(p *goPart, n, r int) float32 {
	cols := p.cols
	x, w := e.quant[r*cols:(r+1)*cols], p.q[n*cols:(n+1)*cols]
	count := cols / p.group
	scales, sums := e.scales[r*cols/32:], e.sums[r*cols/16:]
	s := p.s[n*count : (n+1)*count]
	var acc float32
	for g := range s {
		var isum int32
		for k := g * p.group; k < (g+1)*p.group; k += 16 {
			isum += dot16((*[16]int8)(x[k:]), (*[16]int8)(w[k:]))
		}
		sx := scales[g*p.group/32]
		acc = fma32(float32(isum), float32(s[g]*sx), acc)
		if p.m != nil {
			sum := sums[g*p.group/16]
			if p.group == 32 {
				sum += sums[2*g+1]
			}
			acc = fma32(p.m[n*count+g], float32(float32(sum)*sx), acc)
		}
	}
	return acc
}

// dot16 is written out because the compiler does not: a loop takes twice the time.
func dot16(x, w *[16]int8) int32 {
	return int32(x[0])*int32(w[0]) + int32(x[1])*int32(w[1]) + int32(x[2])*int32(w[2]) + int32(x[3])*int32(w[3]) +
		int32(x[4])*int32(w[4]) + int32(x[5])*int32(w[5]) + int32(x[6])*int32(w[6]) + int32(x[7])*int32(w[7]) +
		int32(x[8])*int32(w[8]) + int32(x[9])*int32(w[9]) + int32(x[10])*int32(w[10]) + int32(x[11])*int32(w[11]) +
		int32(x[12])*int32(w[12]) + int32(x[13])*int32(w[13]) + int32(x[14])*int32(w[14]) + int32(x[15])*int32(w[15])
}
