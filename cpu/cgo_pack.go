//go:build cgo

package cpu

/*
#include <stdlib.h>
#include "native.h"
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"unsafe"

	"github.com/quire-serve/quire/device"
)

// cMatrix is a matrix in strips: see native.h.
type cMatrix struct {
	c        *C.qc_matrix
	partRows []int
	size     int64
}

func (m *cMatrix) bytes() int64 { return m.size }

// free gives the description back; the arena keeps the weights until the device is closed.
func (m *cMatrix) free() {
	C.free(unsafe.Pointer(m.c))
	m.c = nil
}

const stripRows = 16

// stripFormat says how a type is stored in strips.
type stripFormat struct {
	bits, group int
	min, wide   bool
	zero        int // what is added to q, so that it is not negative
}

func formatOf(t device.Type) stripFormat {
	switch t {
	case device.Q4_0:
		return stripFormat{bits: 4, group: 32, zero: 8}
	case device.Q4_1:
		return stripFormat{bits: 4, group: 32, min: true}
	case device.Q5_0:
		return stripFormat{bits: 8, group: 32, zero: 16}
	case device.Q5_1:
		return stripFormat{bits: 8, group: 32, min: true}
	case device.Q8_0:
		return stripFormat{bits: 8, group: 32, zero: 128}
	case device.Q2_K:
		return stripFormat{bits: 4, group: 16, min: true, wide: true}
	case device.Q3_K:
		return stripFormat{bits: 4, group: 16, wide: true, zero: 4}
	case device.Q4_K:
		return stripFormat{bits: 4, group: 32, min: true, wide: true}
	case device.Q5_K:
		return stripFormat{bits: 8, group: 32, min: true, wide: true}
	case device.Q6_K:
		return stripFormat{bits: 8, group: 16, wide: true, zero: 32}
	case device.F16:
		return stripFormat{bits: 16}
	case device.BF16:
		return stripFormat{bits: 17}
	}
	return stripFormat{bits: 32}
}

// block is the size of 32 columns of a strip, or of one column of a float type.
func (f stripFormat) block() int {
	if f.bits > 8 {
		return stripRows * 2 * (1 + f.bits/32)
	}
	scales := 32 / f.group * stripRows * 2
	if f.wide {
		scales *= 2
	}
	if f.min {
		scales *= 2
	}
	return (f.bits*64 + scales + 63) &^ 63
}

// pack stores parts in strips.
func (k *cKernels) pack(parts []device.Tensor) (packed, error) {
	var c C.qc_matrix
	if len(parts) > len(c.part) {
		return nil, fmt.Errorf("%d parts, at most %d", len(parts), len(c.part))
	}
	m := &cMatrix{}
	c.parts, c.cols = C.int32_t(len(parts)), C.int32_t(parts[0].Cols)
	for i, t := range parts {
		f := formatOf(t.Type)
		strips := (t.Rows + stripRows - 1) / stripRows
		units := t.Cols
		if f.bits <= 8 {
			units /= 32
		}
		size := int64(strips) * int64(units) * int64(f.block())
		mem, err := k.weights.take(size)
		if err != nil {
			return nil, err
		}
		k.packPart(mem, f, t)
		c.part[i] = C.qc_part{rows: C.int32_t(t.Rows), strips: C.int32_t(strips), bits: C.int32_t(f.bits), group: C.int32_t(f.group), has_min: boolean(f.min),
			wide: boolean(f.wide), zero: C.int32_t(f.zero), block: C.int32_t(f.block()), data: (*C.uint8_t)(unsafe.SliceData(mem))}
		c.rows += C.int32_t(t.Rows)
		c.strips += C.int32_t(strips)
		m.partRows = append(m.partRows, t.Rows)
		m.size += size
	}
	m.c = (*C.qc_matrix)(C.malloc(C.size_t(unsafe.Sizeof(c))))
	*m.c = c
	return m, nil
}

// packPart fills mem, which is zero, with t. Threads take strips.
func (k *cKernels) packPart(mem []byte, f stripFormat, t device.Tensor) {
	strips := (t.Rows + stripRows - 1) / stripRows
	size := len(mem) / strips
	rowBytes := len(t.Data) / t.Rows
	var wg sync.WaitGroup
	parts := min(k.n, strips)
	for i := range parts {
		wg.Go(func() {
			for s := strips * i / parts; s < strips*(i+1)/parts; s++ {
				strip := mem[s*size : (s+1)*size]
				for row := s * stripRows; row < min(t.Rows, (s+1)*stripRows); row++ {
					src := t.Data[row*rowBytes : (row+1)*rowBytes]
					if f.bits > 8 {
						packFloats(strip, f, row%stripRows, src)
					} else {
						packQuants(strip, f, row%stripRows, t.Type, src)
					}
				}
			}
		})
	}
	wg.Wait()
}

// packFloats stores one row of a float type as a lane of a strip.
func packFloats(strip []byte, f stripFormat, lane int, src []byte) {
	if f.bits == 32 {
		for i := 0; i < len(src); i += 4 {
			copy(strip[i*stripRows+4*lane:][:4], src[i:])
		}
		return
	}
	for i := 0; i < len(src); i += 2 {
		copy(strip[i*stripRows+2*lane:][:2], src[i:])
	}
}

// packQuants stores one row of a quantised type as a lane of a strip.
func packQuants(strip []byte, f stripFormat, lane int, t device.Type, src []byte) {
	var g groups
	n, size, block, perBlock := t.BlockLen(), t.BlockBytes(), f.block(), 32/f.group
	for ; len(src) > 0; src = src[size:] {
		g.decode(t, src[:size])
		for j := 0; j < n/32; j++ {
			q := (*[32]int8)(g.q[32*j:])
			out := strip[:block]
			if f.bits == 4 {
				for c := range 4 {
					for i := range 4 {
						out[c*64+4*lane+i] = byte(int(q[8*c+i])+f.zero) | byte(int(q[8*c+4+i])+f.zero)<<4
					}
				}
			} else {
				for c := range 8 {
					for i := range 4 {
						out[c*64+4*lane+i] = byte(int(q[4*c+i]) + f.zero)
					}
				}
			}
			out = out[f.bits*64:]
			for i := range perBlock {
				out = putScale(out, f.wide, lane, g.s[j*perBlock+i])
			}
			for i := range perBlock {
				if f.min {
					out = putScale(out, f.wide, lane, g.m[j*perBlock+i])
				}
			}
			strip = strip[block:]
		}
	}
}

// putScale stores one of 16 numbers and returns what follows them.
func putScale(out []byte, wide bool, lane int, v float32) []byte {
	if wide {
		binary.LittleEndian.PutUint32(out[4*lane:], math.Float32bits(v))
		return out[4*stripRows:]
	}
	binary.LittleEndian.PutUint16(out[2*lane:], floatToHalf(v))
	return out[2*stripRows:]
}
