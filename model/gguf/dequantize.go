package gguf

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/quire-serve/quire/device"
)

// Dequantize turns stored elements into float32. dst has one entry for each element of src, which
// is whole blocks of t. The block layouts are those of ggml's quantised types.
func Dequantize(t device.Type, src []byte, dst []float32) error {
	if !t.Valid() {
		return fmt.Errorf("dequantize: type %d is unknown", t)
	}
	size, n := t.BlockBytes(), t.BlockLen()
	blocks := len(src) / size
	if len(src)%size != 0 || len(dst) != blocks*n {
		return fmt.Errorf("dequantize %v: %d bytes to %d elements; a block is %d bytes, %d elements", t, len(src), len(dst), size, n)
	}
	block := blockDecoders[t]
	for i := range blocks {
		block(src[i*size:(i+1)*size], dst[i*n:(i+1)*n])
	}
	return nil
}

// Each decoder turns one block into its elements. The explicit float32 conversions of products
// keep compilers from fusing them with the addition, so that every machine gets the same bits.
var blockDecoders = [...]func(b []byte, x []float32){
	device.F32:  func(b []byte, x []float32) { x[0] = math.Float32frombits(binary.LittleEndian.Uint32(b)) },
	device.F16:  func(b []byte, x []float32) { x[0] = half(b) },
	device.BF16: func(b []byte, x []float32) { x[0] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16) },
	device.Q4_0: q4_0, device.Q4_1: q4_1, device.Q5_0: q5_0, device.Q5_1: q5_1, device.Q8_0: q8_0,
	device.Q2_K: q2K, device.Q3_K: q3K, device.Q4_K: q4K, device.Q5_K: q5K, device.Q6_K: q6K,
}

func half(b []byte) float32 { return Half(binary.LittleEndian.Uint16(b)) }

// Half turns an IEEE half-precision number into float32.
func Half(h uint16) float32 {
	sign := uint32(h>>15) << 31
	exponent, mantissa := uint32(h>>10)&31, uint32(h)&1023
	switch exponent {
	case 0: // zero or subnormal: mantissa · 2⁻²⁴, exact in float32
		x := float32(mantissa) * (1.0 / (1 << 24))
		return math.Float32frombits(math.Float32bits(x) | sign)
	case 31:
		return math.Float32frombits(sign | 255<<23 | mantissa<<13)
	}
	return math.Float32frombits(sign | (exponent+127-15)<<23 | mantissa<<13)
}

// The 32-element types: a scale d (and a minimum m), then low nibbles of elements 0 to 15 in the
// low halves of 16 bytes and those of 16 to 31 in the high halves. The fifth bits of Q5 are the
// bits of a 32-bit word.

func q4_0(b []byte, x []float32) {
	d := half(b)
	for i, q := range b[2:18] {
		x[i] = d * float32(int(q&15)-8)
		x[i+16] = d * float32(int(q>>4)-8)
	}
}

func q4_1(b []byte, x []float32) {
	d, m := half(b), half(b[2:])
	for i, q := range b[4:20] {
		x[i] = float32(d*float32(q&15)) + m
		x[i+16] = float32(d*float32(q>>4)) + m
	}
}

func q5_0(b []byte, x []float32) {
	d, high := half(b), binary.LittleEndian.Uint32(b[2:])
	for i, q := range b[6:22] {
		x[i] = d * float32(int(uint32(q&15)|high>>i&1<<4)-16)
		x[i+16] = d * float32(int(uint32(q>>4)|high>>(i+16)&1<<4)-16)
	}
}

func q5_1(b []byte, x []float32) {
	d, m, high := half(b), half(b[2:]), binary.LittleEndian.Uint32(b[4:])
	for i, q := range b[8:24] {
		x[i] = float32(d*float32(uint32(q&15)|high>>i&1<<4)) + m
		x[i+16] = float32(d*float32(uint32(q>>4)|high>>(i+16)&1<<4)) + m
	}
}

func q8_0(b []byte, x []float32) {
	d := half(b)
	for i, q := range b[2:34] {
		x[i] = d * float32(int8(q))
	}
}

// The K types hold 256 elements in sub-blocks of 16 or 32 whose small integer scales multiply the
// block's own. Their quants lie in two halves (of 128 elements) or four quarters (of 64), each of
// which spreads its elements over the bit positions of the same bytes.

// q2K: 16 bytes of scales (low nibble) and minima (high nibble), 64 bytes of quants, d, dmin.
func q2K(b []byte, x []float32) {
	scales, quants := b[:16], b[16:80]
	d, dmin := half(b[80:]), half(b[82:])
	for i := range x {
		s := scales[i/16]
		q := quants[i/128*32+i%32] >> (i % 128 / 32 * 2) & 3
		x[i] = float32(float32(d*float32(s&15))*float32(q)) - float32(dmin*float32(s>>4))
	}
}

// q3K: 32 bytes of third bits (clear means minus 4), 64 bytes of quants, 12 bytes with sixteen
// 6-bit scales, d.
func q3K(b []byte, x []float32) {
	high, quants, packed := b[:32], b[32:96], b[96:108]
	d := half(b[108:])
	var scales [16]float32
	for i := range scales {
		low := packed[i%8] >> (i / 8 * 4) & 15
		top := packed[8+i%4] >> (i / 4 * 2) & 3
		scales[i] = d * float32(int(low|top<<4)-32)
	}
	for i := range x {
		q := int(quants[i/128*32+i%32] >> (i % 128 / 32 * 2) & 3)
		if high[i%32]>>(i/32)&1 == 0 {
			q -= 4
		}
		x[i] = scales[i/16] * float32(q)
	}
}

// scaleMin unpacks the 6-bit scale and minimum of sub-block i of eight, as Q4_K and Q5_K store
// them in 12 bytes.
func scaleMin(b []byte, i int) (scale, minimum float32) {
	if i < 4 {
		return float32(b[i] & 63), float32(b[i+4] & 63)
	}
	return float32(b[i+4]&15 | b[i-4]>>6<<4), float32(b[i+4]>>4 | b[i]>>6<<4)
}

// q4K: d, dmin, 12 bytes of scales and minima, 128 bytes of quants.
func q4K(b []byte, x []float32) {
	d, dmin, quants := half(b), half(b[2:]), b[16:144]
	for s := range 8 {
		scale, minimum := scaleMin(b[4:16], s)
		scale, minimum = d*scale, dmin*minimum
		for i := range 32 {
			q := quants[s/2*32+i] >> (s % 2 * 4) & 15
			x[s*32+i] = float32(scale*float32(q)) - minimum
		}
	}
}

// q5K: d, dmin, 12 bytes of scales and minima, 32 bytes of fifth bits, 128 bytes of quants.
func q5K(b []byte, x []float32) {
	d, dmin, high, quants := half(b), half(b[2:]), b[16:48], b[48:176]
	for s := range 8 {
		scale, minimum := scaleMin(b[4:16], s)
		scale, minimum = d*scale, dmin*minimum
		for i := range 32 {
			q := quants[s/2*32+i]>>(s%2*4)&15 | high[i]>>s&1<<4
			x[s*32+i] = float32(scale*float32(q)) - minimum
		}
	}
}

// q6K: 128 bytes of low nibbles, 64 bytes of high pairs of bits, 16 signed scales, d.
func q6K(b []byte, x []float32) {
	low, high, scales := b[:128], b[128:192], b[192:208]
	d := half(b[208:])
	for i := range x {
		group := i % 128 / 32 // the four groups of 32 share their bytes
		l := low[i/128*64+group%2*32+i%32] >> (group / 2 * 4) & 15
		h := high[i/128*32+i%32] >> (group * 2) & 3
		x[i] = float32(d*float32(int8(scales[i/16]))) * float32(int(l|h<<4)-32)
	}
}
