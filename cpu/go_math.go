package cpu

import "math"

// fma32 is a·b + c rounded once.
//
// The product of two binary32 numbers is exact in binary64, so only the sum rounds there, and then
// the conversion rounds again. The second rounding differs from rounding once only if the sum came
// to lie exactly between two binary32 numbers, where its low 28 bits are zero; only then is the
// sum's error looked at. math.FMA has the same double rounding and is slower.
func fma32(a, b, c float32) float32 {
	p := float64(a) * float64(b)
	s := p + float64(c)
	if math.Float64bits(s)&(1<<28-1) != 0 {
		return float32(s)
	}
	return fmaTie(p, float64(c), s)
}

// fmaTie finishes fma32 where s = p + c may lie half-way: it moves s off by one bit towards the exact
// sum if s is not exact.
func fmaTie(p, c, s float64) float32 {
	back := s - p
	e := (p - (s - back)) + (c - back) // exact: s + e = p + c
	if e > 0 || e < 0 {                // false for NaNs, which infinities give
		bits := math.Float64bits(s)
		if (e > 0) == (s > 0) {
			bits++
		} else {
			bits--
		}
		s = math.Float64frombits(bits)
	}
	return float32(s)
}

// Constants of exp32: see the package comment.
const (
	log2e = float32(0x1.715476p+0)
	ln2hi = float32(0x1.62e4p-1)
	ln2lo = float32(0x1.7f7d1cp-20)
)

// exp32 is the exponential function as the package comment specifies it.
func exp32(x float32) float32 {
	x = min(max(x, -87), 88)
	n := float32(math.RoundToEven(float64(float32(x * log2e))))
	r := fma32(n, -ln2hi, x)
	r = fma32(n, -ln2lo, r)
	p := float32(1.0 / 5040)
	p = fma32(p, r, 1.0/720)
	p = fma32(p, r, 1.0/120)
	p = fma32(p, r, 1.0/24)
	p = fma32(p, r, 1.0/6)
	p = fma32(p, r, 0.5)
	p = fma32(p, r, 1)
	p = fma32(p, r, 1)
	return p * math.Float32frombits(uint32(int32(n)+127)<<23)
}

// tree16 adds sixteen lanes.
func tree16(a *[16]float32) float32 {
	for _, n := range [...]int{8, 4, 2, 1} {
		for l := range n {
			a[l] += a[l+n]
		}
	}
	return a[0]
}

// rmsNorm sets dst = src/sqrt(mean(src²)+eps)·w. dst may be src.
func rmsNorm(dst, src, w []float32, eps float32) {
	var lanes [16]float32
	for i, x := range src {
		lanes[i&15] = fma32(x, x, lanes[i&15])
	}
	mean := tree16(&lanes) / float32(len(src))
	r := 1 / float32(math.Sqrt(float64(mean+eps)))
	for i, x := range src {
		dst[i] = float32(x*r) * w[i]
	}
}

// swiGLU sets dst[i] = silu(src[i])·src[len(dst)+i].
func swiGLU(dst, src []float32) {
	for i := range dst {
		a := src[i]
		dst[i] = float32(a/(1+exp32(-a))) * src[len(dst)+i]
	}
}

// rope rotates one head by a row of the table: cosines, then sines.
func rope(x, table []float32, halfPairs bool) {
	n := len(x) / 2
	for i := range n {
		a, b := 2*i, 2*i+1
		if halfPairs {
			a, b = i, i+n
		}
		c, s := table[i], table[n+i]
		xa, xb := x[a], x[b]
		x[a] = fma32(xa, c, -float32(xb*s))
		x[b] = fma32(xa, s, float32(xb*c))
	}
}

// quantizeRow cuts x into blocks of 32 columns: q holds a signed byte for each column, s a scale for
// each block.
func quantizeRow(q []int8, s, x []float32) {
	for j := range s {
		var top float32
		for _, v := range x[32*j : 32*j+32] {
			top = max(top, float32(math.Abs(float64(v))))
		}
		s[j] = 0
		if !(top >= 1e-30) {
			clear(q[32*j : 32*j+32])
			continue
		}
		s[j] = top / 127
		r := 127 / top
		for i, v := range x[32*j : 32*j+32] {
			q[32*j+i] = int8(math.RoundToEven(float64(float32(v * r))))
		}
	}
}
