package cpu

import (
	"math"
	"unsafe"

	"github.com/quire-serve/quire/device"
)

// spanTokens is the number of tokens after which the softmax is rescaled.
const spanTokens = 4 * tileTokens

// goCache reads and writes numbers in pages; one of f32 and f16 is set.
type goCache struct {
	layout device.KVLayout
	page   int // elements a page
	head   int // elements of one head's K, or V, in a page
	f32    []float32
	f16    []uint16
}

func newGoCache(l device.KVLayout, mem []byte) *goCache {
	c := &goCache{layout: l, page: int(l.PageBytes()) / l.Type.BlockBytes(), head: l.BlockTokens * l.HeadDim}
	at := unsafe.Pointer(unsafe.SliceData(mem))
	if l.Type == device.F16 {
		c.f16 = unsafe.Slice((*uint16)(at), len(mem)/2)
	} else {
		c.f32 = unsafe.Slice((*float32)(at), len(mem)/4)
	}
	return c
}

// tile returns the offset of the tile of K (kv 0) or V (kv 1) that holds position pos.
func (c *goCache) tile(table []int32, pos, layer, kv, head int) int {
	page, in := int(table[pos/c.layout.BlockTokens]), pos%c.layout.BlockTokens
	return page*c.page + ((layer*2+kv)*c.layout.KVHeads+head)*c.head + in/tileTokens*tileTokens*c.layout.HeadDim
}

func (c *goCache) at(i int) float32 {
	if c.f16 != nil {
		return halfToFloat(c.f16[i])
	}
	return c.f32[i]
}

func (c *goCache) set(i int, v float32) {
	if c.f16 != nil {
		c.f16[i] = floatToHalf(v)
		return
	}
	c.f32[i] = v
}

// eachRow calls f for every row and KV head, with the row's page table. Rows of one sequence may
// run at the same time.
func (e *goExecutor) eachRow(kvHeads int, f func(r, head int, table []int32)) {
	seqOf := make([]int32, len(e.step.tokens))
	for i, seq := range e.step.seqs {
		for r := seq.Row; r < seq.Row+seq.Rows; r++ {
			seqOf[r] = int32(i)
		}
	}
	e.k.parallel(len(seqOf)*kvHeads, 1, func(from, to int) {
		for i := from; i < to; i++ {
			r := i / kvHeads
			f(r, i%kvHeads, e.step.tables[e.step.seqs[seqOf[r]].Table:])
		}
	})
}

// storeKV writes each row's K and V.
func (e *goExecutor) storeKV(ph *phase) {
	hd := int(ph.headDim)
	e.eachRow(int(ph.kvHeads), func(r, head int, table []int32) {
		row := e.row(ph.src, r)
		k, v := row[int(ph.kCol)+head*hd:][:hd], row[int(ph.vCol)+head*hd:][:hd]
		pos := int(e.step.positions[r])
		kt := e.cache.tile(table, pos, int(ph.layer), 0, head) + pos%tileTokens
		vt := e.cache.tile(table, pos, int(ph.layer), 1, head) + pos%tileTokens*hd
		for d := range hd {
			e.cache.set(kt+d*tileTokens, k[d])
			e.cache.set(vt+d, v[d])
		}
	})
}

// attention rotates and stores if the phase says so, then attends.
func (e *goExecutor) attention(ph *phase) {
	if ph.ropeQ || ph.ropeK {
		e.k.parallel(len(e.step.tokens), 4, func(from, to int) {
			for r := from; r < to; r++ {
				row := e.row(ph.src, r)
				if ph.ropeQ {
					e.rotate(ph, row, r, ph.qCol, ph.heads)
				}
				if ph.ropeK {
					e.rotate(ph, row, r, ph.kCol, ph.kvHeads)
				}
			}
		})
	}
	if ph.store {
		e.storeKV(ph)
	}
	hd, perKV := int(ph.headDim), int(ph.heads/ph.kvHeads)
	e.eachRow(int(ph.kvHeads), func(r, kvHead int, table []int32) {
		src, dst := e.row(ph.src, r), e.row(ph.dst, r)
		for h := kvHead * perKV; h < (kvHead+1)*perKV; h++ {
			q := src[int(ph.qCol)+h*hd:][:hd]
			e.attendHead(dst[h*hd:(h+1)*hd], q, ph, table, kvHead, int(e.step.positions[r]))
		}
	})
}

// attendHead computes one query head of one row at position pos.
func (e *goExecutor) attendHead(out, q []float32, ph *phase, table []int32, kvHead, pos int) {
	hd := len(q)
	qs := make([]float32, hd)
	for d, v := range q {
		qs[d] = v * ph.scale
	}
	clear(out)
	var lanes [16]float32
	var s [spanTokens]float32
	top := float32(math.Inf(-1))
	for span := 0; span <= pos; span += spanTokens {
		n := min(spanTokens, pos+1-span)
		next := top
		for t := range n {
			k := e.cache.tile(table, span+t, int(ph.layer), 0, kvHead) + t%tileTokens
			s[t] = 0
			for d, v := range qs {
				s[t] = fma32(v, e.cache.at(k+d*tileTokens), s[t])
			}
			next = max(next, s[t])
		}
		alpha := exp32(top - next)
		top = next
		for l := range lanes {
			lanes[l] = float32(lanes[l] * alpha)
		}
		for d := range out {
			out[d] = float32(out[d] * alpha)
		}
		for t := range n {
			w := exp32(s[t] - top)
			lanes[t%16] += w
			v := e.cache.tile(table, span+t, int(ph.layer), 1, kvHead) + t%tileTokens*hd
			for d := range out {
				out[d] = fma32(w, e.cache.at(v+d), out[d])
			}
		}
	}
	inv := 1 / tree16(&lanes)
	for d := range out {
		out[d] *= inv
	}
}
