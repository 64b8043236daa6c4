package cpu

import (
	"encoding/binary"
	"math"
	"unsafe"

	"github.com/quire-serve/quire/device"
)

// groups is one block of a quantised type, decoded: w = s·q + m over groups of groupCols(t) columns.
// It holds up to 256 columns and 16 groups.
type groups struct {
	q    [256]int8
	s, m [16]float32
}

// groupCols is the number of columns that share a scale, 0 for float types.
func groupCols(t device.Type) int {
	switch t {
	case device.Q4_0, device.Q4_1, device.Q5_0, device.Q5_1, device.Q8_0, device.Q4_K, device.Q5_K:
		return 32
	case device.Q2_K, device.Q3_K, device.Q6_K:
		return 16
	}
	return 0
}

// hasMin reports whether t stores a minimum m for each group.
func hasMin(t device.Type) bool {
	switch t {
	case device.Q4_1, device.Q5_1, device.Q2_K, device.Q4_K, device.Q5_K:
		return true
	}
	return false
}

// decode reads one block of type t. Formats: ggml's block_* structures, all little-endian.
func (g *groups) decode(t device.Type, b []byte) {
	switch t {
	case device.Q4_0: // d, 16 bytes: low nibbles are columns 0-15, high ones 16-31
		g.s[0] = half(b)
		g.nibbles(b[2:18], nil, -8)
	case device.Q4_1: // d, m, nibbles
		g.s[0], g.m[0] = half(b), half(b[2:])
		g.nibbles(b[4:20], nil, 0)
	case device.Q5_0: // d, 32 fifth bits, nibbles
		g.s[0] = half(b)
		g.nibbles(b[6:22], b[2:6], -16)
	case device.Q5_1: // d, m, 32 fifth bits, nibbles
		g.s[0], g.m[0] = half(b), half(b[2:])
		g.nibbles(b[8:24], b[4:8], 0)
	case device.Q8_0: // d, 32 int8
		g.s[0] = half(b)
		for i, v := range b[2:34] {
			g.q[i] = int8(v)
		}
	case device.Q2_K:
		g.decodeQ2K(b)
	case device.Q3_K:
		g.decodeQ3K(b)
	case device.Q4_K: // d, dmin, 12 bytes of scales, 128 bytes: 32 bytes hold two groups, low nibbles first
		g.scalesK(b)
		for i, v := range b[16:144] {
			at := i/32*64 + i%32
			g.q[at], g.q[at+32] = int8(v&15), int8(v>>4)
		}
	case device.Q5_K: // d, dmin, 12 bytes of scales, 32 bytes of fifth bits (bit = group), 128 bytes as Q4_K
		g.scalesK(b)
		for i, v := range b[48:176] {
			pair, col := i/32, i%32
			high := b[16+col] >> (2 * pair)
			g.q[pair*64+col] = int8(v&15 | high&1<<4)
			g.q[pair*64+32+col] = int8(v>>4 | high>>1&1<<4)
		}
	case device.Q6_K:
		g.decodeQ6K(b)
	}
}

// nibbles reads 32 columns of 4 bits, or 5 with the fifth bits in high, plus offset.
func (g *groups) nibbles(low, high []byte, offset int8) {
	var fifth uint32
	if high != nil {
		fifth = binary.LittleEndian.Uint32(high)
	}
	for i, v := range low {
		g.q[i] = int8(v&15|byte(fifth>>i&1)<<4) + offset
		g.q[i+16] = int8(v>>4|byte(fifth>>(i+16)&1)<<4) + offset
	}
}

// scalesK reads d, dmin and eight 6-bit scales and minima of Q4_K and Q5_K: the first four lie in
// the low six bits of bytes 0-3 and 4-7; the others have their low four bits in bytes 8-11 and
// their high two bits on top of the first four.
func (g *groups) scalesK(b []byte) {
	d, dmin, sc := half(b), half(b[2:]), b[4:16]
	for j := range 8 {
		var s, m byte
		if j < 4 {
			s, m = sc[j]&63, sc[j+4]&63
		} else {
			s, m = sc[j+4]&15|sc[j-4]>>6<<4, sc[j+4]>>4|sc[j]>>6<<4
		}
		g.s[j], g.m[j] = d*float32(s), -(dmin * float32(m))
	}
}

// decodeQ2K: 16 bytes of 4-bit scales (low) and minima (high), 64 bytes of 2 bits, d, dmin. Each
// 32 bytes hold 128 columns: bits 2i and 2i+1 of byte c are column 32i+c.
func (g *groups) decodeQ2K(b []byte) {
	d, dmin := half(b[80:]), half(b[82:])
	for j, v := range b[:16] {
		g.s[j], g.m[j] = d*float32(v&15), -(dmin * float32(v>>4))
	}
	for i, v := range b[16:80] {
		for p := range 4 {
			g.q[i/32*128+p*32+i%32] = int8(v >> (2 * p) & 3)
		}
	}
}

// decodeQ3K: 32 bytes of third bits (bit = 32-column run), 64 bytes of 2 bits as Q2_K, 12 bytes of
// sixteen 6-bit scales, d. A column whose third bit is clear is 4 less.
func (g *groups) decodeQ3K(b []byte) {
	d, sc := half(b[108:]), b[96:108]
	for j := range 16 {
		low := sc[j%8] >> (j / 8 * 4) & 15
		high := sc[8+j%4] >> (j / 4 * 2) & 3
		g.s[j] = d * float32(int(low|high<<4)-32)
	}
	for i, v := range b[32:96] {
		for p := range 4 {
			run := i/32*4 + p
			q := int8(v >> (2 * p) & 3)
			if b[i%32]>>run&1 == 0 {
				q -= 4
			}
			g.q[run*32+i%32] = q
		}
	}
}

// decodeQ6K: 128 bytes of low nibbles, 64 bytes of high 2 bits, 16 int8 scales, d. Each half of 128
// columns has 64 low bytes (columns 0-31 and 32-63 in the low nibbles, 64-127 in the high ones) and
// 32 high bytes (bits 2i and 2i+1 belong to columns 32i to 32i+31).
func (g *groups) decodeQ6K(b []byte) {
	d := half(b[208:])
	for j, v := range b[192:208] {
		g.s[j] = d * float32(int8(v))
	}
	for i := range 256 {
		part, c := i/128, i%128
		low := b[part*64+c%64] >> (c / 64 * 4) & 15
		high := b[128+part*32+c%32] >> (c / 32 * 2) & 3
		g.q[i] = int8(low|high<<4) - 32
	}
}

// dequantize converts src, whole blocks of type t, to dst.
func dequantize(t device.Type, src []byte, dst []float32) {
	switch t {
	case device.F32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
		return
	case device.F16:
		for i := range dst {
			dst[i] = half(src[2*i:])
		}
		return
	case device.BF16:
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
		return
	}
	var g groups
	n, size, group, withMin := t.BlockLen(), t.BlockBytes(), groupCols(t), hasMin(t)
	for b := 0; b*n < len(dst); b++ {
		g.decode(t, src[b*size:(b+1)*size])
		for i := range n {
			w := float32(g.s[i/group] * float32(g.q[i]))
			if withMin {
				w += g.m[i/group]
			}
			dst[b*n+i] = w
		}
	}
}

// half reads a binary16 number.
func half(b []byte) float32 { return halfToFloat(binary.LittleEndian.Uint16(b)) }

// halfToFloat is exact.
func halfToFloat(h uint16) float32 {
	sign, exp, frac := uint32(h>>15)<<31, uint32(h>>10&31), uint32(h&1023)
	switch exp {
	case 0: // frac·2^-24
		f := float32(frac) * 0x1p-24
		return math.Float32frombits(math.Float32bits(f) | sign)
	case 31:
		return math.Float32frombits(sign | 255<<23 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}

// floatToHalf rounds to nearest even; what is too large becomes an infinity, NaNs stay NaNs.
func floatToHalf(f float32) uint16 {
	b := math.Float32bits(f)
	sign, a := uint16(b>>16&0x8000), b&0x7fffffff
	switch {
	case a > 0x7f800000:
		return sign | 0x7e00
	case a >= 0x477ff000: // 65520 and above
		return sign | 0x7c00
	case a < 0x38800000: // below 2^-14: a multiple of 2^-24; adding 2^-1 leaves it in the low bits
		r := math.Float32frombits(a) + 0.5
		return sign | uint16(math.Float32bits(r)-0x3f000000)
	}
	return sign | uint16((a+0xfff+(a>>13&1)-112<<23)>>13)
}

// floatBytes is f's memory.
func floatBytes(f []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), 4*len(f))
}
