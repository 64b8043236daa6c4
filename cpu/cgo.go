//go:build cgo

package cpu

// -std=c11 keeps products and sums apart: the compiler must not fuse what the numerics round twice.

/*
#cgo CFLAGS: -std=c11 -O3 -g0
#cgo LDFLAGS: -lm -lpthread
#include <stdlib.h>
#include "native.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/quire-serve/quire/device"
)

// nativePaths lists the C paths that work here, best first.
func nativePaths() []string {
	var have []string
	for _, name := range []string{"avx512", "avx2", "generic"} {
		if findPath(name) != nil {
			have = append(have, name)
		}
	}
	return have
}

func findPath(name string) *C.qc_path {
	s := C.CString(name)
	defer C.free(unsafe.Pointer(s))
	return C.qc_find(s)
}

var errNoMemory = errors.New("the system gives no memory")

// cKernels is a path in C. C keeps no pointer into Go's memory: weights, caches and buffers are
// mapped here, and what belongs to a step is passed for the call.
type cKernels struct {
	name string
	n    int
	code *C.qc_path

	mu   sync.Mutex // one step at a time; guards pool
	pool *C.qc_pool

	weights arena
}

var _ kernels = (*cKernels)(nil)

func openNative(path string, threads int) (kernels, error) {
	k := &cKernels{name: path, n: threads, code: findPath(path)}
	if k.code == nil {
		return nil, fmt.Errorf("no path %s", path)
	}
	if k.pool = C.qc_pool_new(C.int(threads)); k.pool == nil {
		return nil, fmt.Errorf("the system does not start %d threads", threads)
	}
	return k, nil
}

func (k *cKernels) path() string { return k.name }
func (k *cKernels) threads() int { return k.n }

func (k *cKernels) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	C.qc_pool_free(k.pool)
	k.pool = nil
	k.weights.free()
}

func (k *cKernels) alloc(bytes int64) ([]byte, func(), error) { return mapMemory(bytes) }

func mapMemory(bytes int64) ([]byte, func(), error) {
	size := C.size_t(max(bytes, 1))
	p := C.qc_map(size)
	if p == nil {
		return nil, nil, errNoMemory
	}
	return unsafe.Slice((*byte)(p), bytes), func() { C.qc_unmap(p, size) }, nil
}

func (k *cKernels) argmax(x []float32) int32 {
	return int32(C.qc_call_argmax(k.code, floats(x), C.int64_t(len(x))))
}

func (k *cKernels) expRow(dst, x []float32, shift, scale float32) float64 {
	return float64(C.qc_call_exp_row(k.code, floats(dst), floats(x), C.int64_t(len(x)), C.float(shift), C.float(scale)))
}

func floats(x []float32) *C.float { return (*C.float)(unsafe.SliceData(x)) }
func ints(x []int32) *C.int32_t   { return (*C.int32_t)(unsafe.SliceData(x)) }

// arena hands out memory of weights from large maps, so that small matrices lie in huge pages too.
type arena struct {
	mu    sync.Mutex
	rest  []byte
	frees []func()
}

// arenaBytes is the size of a map; what is larger gets its own.
const arenaBytes = 64 << 20

// take returns zeroed memory, aligned to 64 bytes.
func (a *arena) take(bytes int64) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	size := (bytes + 63) &^ 63
	if size > int64(len(a.rest)) {
		mem, free, err := mapMemory(max(size, arenaBytes))
		if err != nil {
			return nil, err
		}
		a.frees = append(a.frees, free)
		if int64(len(mem))-size < int64(len(a.rest)) {
			return mem[:bytes], nil
		}
		a.rest = mem
	}
	mem := a.rest[:bytes]
	a.rest = a.rest[size:]
	return mem, nil
}

func (a *arena) free() {
	for _, f := range a.frees {
		f()
	}
	a.frees, a.rest = nil, nil
}

// cExecutor holds a plan in C's memory.
type cExecutor struct {
	k     *cKernels
	exec  *C.qc_exec
	frees []func()
}

// table allocates n elements of C's memory that live as long as the executor.
func table[T any](e *cExecutor, n int) []T {
	n = max(n, 1)
	p := C.calloc(C.size_t(n), C.size_t(unsafe.Sizeof(*new(T)))) // aborts the process rather than to return NULL
	e.frees = append(e.frees, func() { C.free(p) })
	return unsafe.Slice((*T)(p), n)
}

// space maps memory that lives as long as the executor.
func (e *cExecutor) space(bytes int64) (*byte, error) {
	mem, free, err := mapMemory(bytes)
	if err != nil {
		return nil, err
	}
	e.frees = append(e.frees, free)
	return unsafe.SliceData(mem), nil
}

func (k *cKernels) executor(p *plan, kv []byte) (executor, error) {
	e := &cExecutor{k: k}
	if err := e.build(p, kv); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// build copies the plan to C.
func (e *cExecutor) build(p *plan, kv []byte) error {
	exec := &table[C.qc_exec](e, 1)[0]
	e.exec = exec
	exec.pool = e.k.pool
	phases, buffers := table[C.qc_phase](e, len(p.phases)), table[C.qc_buffer](e, len(p.widths))
	exec.phases, exec.phase = C.int32_t(len(p.phases)), &phases[0]
	exec.taken = ints(table[int32](e, len(p.phases)*C.QC_LINE))
	exec.buffers, exec.buffer, exec.logits = C.int32_t(len(p.widths)), &buffers[0], C.int32_t(p.logits)
	gated := gatedPhases(p)
	types := map[device.Type]C.int32_t{device.F32: C.QC_CACHE_F32, device.F16: C.QC_CACHE_F16, device.I8: C.QC_CACHE_I8}
	tile := p.kv.HeadBytes() * tileTokens
	for i := range p.kv.Groups() {
		exec.cache[i] = C.qc_cache{data: (*C.uint8_t)(unsafe.SliceData(groupMemory(p.kv, kv, i))), page: C.int64_t(p.kv.Group(i).PageBytes()),
			head: C.int64_t(tile * int64(p.kv.BlockTokens/tileTokens)), tile: C.int64_t(tile),
			block_tokens: C.int32_t(p.kv.BlockTokens), kv_heads: C.int32_t(p.kv.KVHeads), kind: types[p.kv.Type]}
	}

	var shared, own, scratch int64
	vectors := map[int32]*C.float{}
	vector := func(i int32) *C.float {
		if i < 0 {
			return nil
		}
		if w := p.weights[i]; w.free != nil {
			return floats(w.vector) // in C's memory as long as the device is open
		}
		if vectors[i] == nil {
			v := table[float32](e, len(p.weights[i].vector))
			copy(v, p.weights[i].vector)
			vectors[i] = floats(v)
		}
		return vectors[i]
	}
	for i := range p.phases {
		ph := &p.phases[i]
		to := &phases[i]
		*to = C.qc_phase{kind: C.int32_t(ph.kind), dst: C.int32_t(ph.dst), src: C.int32_t(ph.src), prepare: C.int32_t(ph.prepare),
			gather: boolean(ph.gather), accumulate: boolean(ph.accumulate), eps: C.float(ph.eps), scale: C.float(ph.scale),
			half_pairs: boolean(ph.halfPairs), rope_q: boolean(ph.ropeQ), rope_k: boolean(ph.ropeK), store: boolean(ph.store || ph.kind == phaseStoreKV),
			group: C.int32_t(ph.group), layer: C.int32_t(ph.layer), heads: C.int32_t(ph.heads), kv_heads: C.int32_t(ph.kvHeads), head_dim: C.int32_t(ph.headDim),
			q_col: C.int32_t(ph.qCol), k_col: C.int32_t(ph.kCol), v_col: C.int32_t(ph.vCol), window: C.int32_t(ph.window),
			bias: vector(ph.bias), norm: vector(ph.norm), table: vector(ph.table)}
		switch ph.kind {
		case phaseMatMul:
			m := p.weights[ph.w].packed.(*cMatrix)
			to.matrix = m.c
			shared = max(shared, int64(C.qc_input_bytes(m.c, C.int64_t(p.height(ph.dst)))))
			own = max(own, int64(C.qc_input_bytes(m.c, 1)))
			if gated[i] {
				to.swiglu_out = 1
			}
			if i > 0 && gated[i-1] {
				to.prepare = C.QC_PREPARE_NONE
			}
		case phaseEmbed:
			to.matrix = p.weights[ph.w].packed.(*cMatrix).c
		case phaseAttention, phaseStoreKV:
			scratch = max(scratch, int64(C.qc_scratch_bytes(to)))
		}
	}
	for i, w := range p.widths {
		buffers[i].width, buffers[i].per_sample = C.int32_t(w), boolean(p.sample[i])
	}
	for i, ph := range p.phases {
		if gated[i] {
			buffers[ph.dst].width /= 2
		}
	}
	return e.allocate(p, buffers, shared, own, scratch)
}

// allocate maps the buffers, and the inputs and scratch memory of the sizes given.
func (e *cExecutor) allocate(p *plan, buffers []C.qc_buffer, shared, own, scratch int64) error {
	line := func(n int64) int64 { return (n + 63) &^ 63 }
	own, scratch = line(own), line(scratch)
	e.exec.own_bytes, e.exec.scratch_bytes = C.int64_t(own), C.int64_t(scratch)
	sizes := make([]int64, len(buffers)) // of the homes
	for i := range buffers {
		if home := p.home[i]; home >= 0 {
			sizes[home] = max(sizes[home], line(int64(p.height(int32(i)))*int64(buffers[i].width)*4))
		}
	}
	var total int64
	for _, n := range sizes {
		total += n
	}
	threads := int64(e.k.n)
	mem, err := e.space(total + line(shared) + threads*(own+scratch))
	if err != nil {
		return err
	}
	at := int64(0)
	next := func(n int64) unsafe.Pointer {
		p := unsafe.Add(unsafe.Pointer(mem), at)
		at += n
		return p
	}
	for i, home := range p.home {
		if home == int32(i) {
			buffers[i].data = (*C.float)(next(sizes[i]))
		} else if home >= 0 {
			buffers[i].data = buffers[home].data
		}
	}
	e.exec.input = (*C.uint8_t)(next(line(shared)))
	e.exec.own_input = (*C.uint8_t)(next(threads * own))
	e.exec.scratch = (*C.uint8_t)(next(threads * scratch))
	return nil
}

func boolean(b bool) C.int32_t {
	if b {
		return 1
	}
	return 0
}

// gatedPhases finds matmuls whose output the next phase alone reads, through SwiGLU: they gate it as
// they write it, if the two halves are whole strips.
func gatedPhases(p *plan) []bool {
	gated := make([]bool, len(p.phases))
	for i := 0; i+1 < len(p.phases); i++ {
		ph, next := &p.phases[i], &p.phases[i+1]
		if ph.kind != phaseMatMul || next.kind != phaseMatMul || next.prepare != prepareSwiGLU || next.gather || next.src != ph.dst || ph.accumulate || ph.dst == p.logits {
			continue
		}
		ok := p.weights[ph.w].rows%32 == 0
		for _, n := range p.weights[ph.w].packed.(*cMatrix).partRows {
			ok = ok && n%16 == 0
		}
		for j := range p.phases {
			if j != i && p.phases[j].dst == ph.dst || j != i+1 && p.phases[j].src == ph.dst {
				ok = false
			}
		}
		gated[i] = ok
	}
	return gated
}

// C reads a slice of device.Seq as qc_seq: these do not compile unless both have the same fields, all of
// them int32, in the same places.
var (
	_ [0]struct{} = [unsafe.Sizeof(device.Seq{}) - unsafe.Sizeof(C.qc_seq{})]struct{}{}
	_ [0]struct{} = [unsafe.Sizeof(C.qc_seq{}) - unsafe.Sizeof(device.Seq{})]struct{}{}
	_             = [1]struct{}{}[unsafe.Offsetof(device.Seq{}.Rows)-unsafe.Offsetof(C.qc_seq{}.rows)]
	_             = [1]struct{}{}[unsafe.Offsetof(device.Seq{}.Table)-unsafe.Offsetof(C.qc_seq{}.table)]
	_             = [1]struct{}{}[unsafe.Offsetof(device.Seq{}.WindowTable)-unsafe.Offsetof(C.qc_seq{}.table)-4]
	_             = [1]struct{}{}[unsafe.Offsetof(device.Seq{}.Context)-unsafe.Offsetof(C.qc_seq{}.context)]
)

func (e *cExecutor) run(s *step) {
	e.k.mu.Lock()
	defer e.k.mu.Unlock()
	C.qc_step(e.k.code, e.exec, floats(s.logits), C.int32_t(len(s.tokens)), ints(s.tokens), ints(s.positions),
		C.int32_t(len(s.seqs)), (*C.qc_seq)(unsafe.Pointer(unsafe.SliceData(s.seqs))), ints(s.tables), C.int32_t(len(s.sampleRows)), ints(s.sampleRows))
}

func (e *cExecutor) close() {
	for _, free := range e.frees {
		free()
	}
	e.frees, e.exec = nil, nil
}
