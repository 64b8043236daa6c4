package cpu

import (
	"encoding/binary"
	"math"

	"github.com/quire-serve/quire/device"
)

// spanTokens is the number of tokens after which the softmax is rescaled.
const spanTokens = 4 * tileTokens

// goCache reads and writes numbers in pages.
type goCache struct {
	layout device.KVLayout
	mem    []byte
	tile   int // bytes of a tile
	head   int // bytes of one head's K, or V, in a page
	page   int // bytes of a page
}

func newGoCache(l device.KVLayout, mem []byte) *goCache {
	tile := int(l.HeadBytes()) * tileTokens
	return &goCache{layout: l, mem: mem, tile: tile, head: l.BlockTokens / tileTokens * tile, page: int(l.PageBytes())}
}

// goVector is one token's K, or V, of one head: number d is element from + d·step of its tile.
type goVector struct {
	kind       device.Type
	tile       []byte
	from, step int
	scale      []byte // F16, of I8
}

// vector returns the K (kv 0) or V (kv 1) of position pos.
func (c *goCache) vector(table []int32, pos, layer, kv, head int) goVector {
	page, in := int(table[pos/c.layout.BlockTokens]), pos%c.layout.BlockTokens
	at := page*c.page + ((layer*2+kv)*c.layout.KVHeads+head)*c.head + in/tileTokens*c.tile
	v := goVector{kind: c.layout.Type, tile: c.mem[at:][:c.tile], from: in % tileTokens, step: tileTokens}
	if kv == 1 {
		v.from, v.step = v.from*c.layout.HeadDim, 1
	}
	if v.kind == device.I8 {
		v.scale = v.tile[tileTokens*c.layout.HeadDim+2*(in%tileTokens):]
	}
	return v
}

// at returns number d, of I8 without its scale.
func (v *goVector) at(d int) float32 {
	switch i := v.from + d*v.step; v.kind {
	case device.I8:
		return float32(int8(v.tile[i]))
	case device.F16:
		return halfToFloat(binary.NativeEndian.Uint16(v.tile[2*i:]))
	default:
		return math.Float32frombits(binary.NativeEndian.Uint32(v.tile[4*i:]))
	}
}

// times returns x·scale of I8, x of the other types.
func (v *goVector) times(x float32) float32 {
	if v.kind == device.I8 {
		return x * halfToFloat(binary.NativeEndian.Uint16(v.scale))
	}
	return x
}

// store writes x.
func (v *goVector) store(x []float32) {
	if v.kind == device.I8 {
		v.storeBytes(x)
		return
	}
	for d, f := range x {
		if i := v.from + d*v.step; v.kind == device.F16 {
			binary.NativeEndian.PutUint16(v.tile[2*i:], floatToHalf(f))
		} else {
			binary.NativeEndian.PutUint32(v.tile[4*i:], math.Float32bits(f))
		}
	}
}

func (v *goVector) storeBytes(x []float32) {
	var most float32
	for _, f := range x {
		most = max(most, float32(math.Abs(float64(f))))
	}
	half := floatToHalf(most / 127)
	binary.NativeEndian.PutUint16(v.scale, half)
	var inverse float32
	if s := halfToFloat(half); s > 0 {
		inverse = 1 / s
	}
	for d, f := range x {
		v.tile[v.from+d*v.step] = byte(int8(math.RoundToEven(float64(min(max(f*inverse, -127), 127)))))
	}
}

// eachRow calls f for every row and KV head, with the row's page table for ph. Rows of one sequence may
// run at the same time.
func (e *goExecutor) eachRow(ph *phase, f func(r, head int, table []int32)) {
	kvHeads := int(ph.kvHeads)
	seqOf := make([]int32, len(e.step.tokens))
	for i, seq := range e.step.seqs {
		for r := seq.Row; r < seq.Row+seq.Rows; r++ {
			seqOf[r] = int32(i)
		}
	}
	e.k.parallel(len(seqOf)*kvHeads, 1, func(from, to int) {
		for i := from; i < to; i++ {
			r := i / kvHeads
			seq := &e.step.seqs[seqOf[r]]
			table := seq.Table
			if ph.group == 1 {
				table = seq.WindowTable
			}
			f(r, i%kvHeads, e.step.tables[table:])
		}
	})
}

// storeKV writes each row's K and V.
func (e *goExecutor) storeKV(ph *phase) {
	hd := int(ph.headDim)
	e.eachRow(ph, func(r, head int, table []int32) {
		row := e.row(ph.src, r)
		k, v := row[int(ph.kCol)+head*hd:][:hd], row[int(ph.vCol)+head*hd:][:hd]
		pos := int(e.step.positions[r])
		for kv, x := range [][]float32{k, v} {
			to := e.cache[ph.group].vector(table, pos, int(ph.layer), kv, head)
			to.store(x)
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
	e.eachRow(ph, func(r, kvHead int, table []int32) {
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
	cache := e.cache[ph.group]
	var lanes [16]float32
	var s [spanTokens]float32
	top := float32(math.Inf(-1))
	begin := 0
	if w := int(ph.window); w > 0 {
		begin = max(0, pos-w+1)
	}
	for span := begin / spanTokens * spanTokens; span <= pos; span += spanTokens {
		from, to := max(0, begin-span), min(spanTokens, pos+1-span)
		next := top
		for t := from; t < to; t++ {
			k := cache.vector(table, span+t, int(ph.layer), 0, kvHead)
			s[t] = 0
			for d, v := range qs {
				s[t] = fma32(v, k.at(d), s[t])
			}
			s[t] = k.times(s[t])
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
		for t := from; t < to; t++ {
			w := exp32(s[t] - top)
			lanes[t%16] += w
			v := cache.vector(table, span+t, int(ph.layer), 1, kvHead)
			w = v.times(w)
			for d := range out {
				out[d] = fma32(w, v.at(d), out[d])
			}
		}
	}
	inv := 1 / tree16(&lanes)
	for d := range out {
		out[d] *= inv
	}
}
