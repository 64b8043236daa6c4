package cpu

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/quire-serve/quire/device"
)

// weight is a matrix or a table. A single F32 tensor, or a single row of any float type, is kept as
// plain rows, for it may be a norm's weight, a bias or a RoPE table; it is packed when a program
// multiplies by it, and if it has more than one row the plain ones are given back then. All else is
// packed at once.
type weight struct {
	dev        *Device
	name       string
	rows, cols int
	vector     []float32 // [rows, cols]; nil if packed, unless it is one row
	free       func()    // of vector, if it lies in the kernels' memory: when it has more than one row
	packed     packed    // nil until needed
}

func (w *weight) Rows() int { return w.rows }
func (w *weight) Cols() int { return w.cols }

func (w *weight) Bytes() int64 {
	n := int64(len(w.vector)) * 4
	if w.packed != nil {
		n += w.packed.bytes()
	}
	return n
}

// maxDim bounds rows and columns of a weight, so that products of sizes fit an int64 and indices an
// int32.
const maxDim = 1 << 28

// Load copies parts into the form that the device's kernels want.
func (d *Device) Load(name string, parts ...device.Tensor) (device.Weight, error) {
	if len(parts) == 0 {
		return nil, fmt.Errorf("cpu: load %s: no tensors", name)
	}
	w := &weight{dev: d, name: name, cols: parts[0].Cols}
	for i, p := range parts {
		if !p.Type.Valid() {
			return nil, fmt.Errorf("cpu: load %s: part %d has type %d: %w", name, i, p.Type, device.ErrUnsupported)
		}
		if p.Rows < 1 || p.Cols < 1 || p.Rows > maxDim || p.Cols > maxDim || p.Cols != w.cols || p.Cols%p.Type.BlockLen() != 0 {
			return nil, fmt.Errorf("cpu: load %s: part %d is %d×%d of %s beside %d columns, blocks of %d", name, i, p.Rows, p.Cols, p.Type, w.cols, p.Type.BlockLen())
		}
		if want := int64(p.Rows) * int64(p.Cols/p.Type.BlockLen()) * int64(p.Type.BlockBytes()); int64(len(p.Data)) != want {
			return nil, fmt.Errorf("cpu: load %s: part %d has %d bytes, want %d", name, i, len(p.Data), want)
		}
		w.rows += p.Rows
	}
	if w.rows > maxDim {
		return nil, fmt.Errorf("cpu: load %s: %d rows, at most %d", name, w.rows, maxDim)
	}
	t := parts[0].Type
	if len(parts) == 1 && (t == device.F32 || w.rows == 1 && (t == device.F16 || t == device.BF16)) {
		if err := d.reserve("weight "+name, int64(w.rows)*int64(w.cols)*4); err != nil {
			return nil, err
		}
		if err := w.makeVector(); err != nil {
			d.release(int64(w.rows) * int64(w.cols) * 4)
			return nil, fmt.Errorf("cpu: load %s: %w", name, err)
		}
		dequantize(t, parts[0].Data, w.vector)
		return w, nil
	}
	if d.opts.ExactFloat {
		parts = exactFloat(parts)
	}
	return w, d.packWeight(w, parts)
}

// makeVector allocates the plain rows.
func (w *weight) makeVector() error {
	n := w.rows * w.cols
	if w.rows == 1 {
		w.vector = make([]float32, n)
		return nil
	}
	mem, free, err := w.dev.kern.alloc(int64(n) * 4)
	if err != nil {
		return err
	}
	w.vector, w.free = unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(mem))), n), free
	w.dev.mu.Lock()
	defer w.dev.mu.Unlock()
	w.dev.frees = append(w.dev.frees, w.dropVector)
	return nil
}

// dropVector gives the plain rows back, once.
func (w *weight) dropVector() {
	if w.free != nil {
		w.free()
	}
	w.vector, w.free = nil, nil
}

// packWeight packs parts as w and accounts for their memory.
func (d *Device) packWeight(w *weight, parts []device.Tensor) error {
	var estimate int64
	for _, p := range parts {
		estimate += int64(len(p.Data))
	}
	if err := d.reserve("weight "+w.name, estimate); err != nil {
		return err
	}
	pk, err := d.kern.pack(parts)
	if err != nil {
		d.release(estimate)
		return fmt.Errorf("cpu: load %s: %w", w.name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.used += pk.bytes() - estimate
	d.frees = append(d.frees, pk.free)
	w.packed = pk
	return nil
}

// exactFloat returns parts as F32.
func exactFloat(parts []device.Tensor) []device.Tensor {
	exact := make([]device.Tensor, len(parts))
	for i, p := range parts {
		row := make([]float32, p.Rows*p.Cols)
		dequantize(p.Type, p.Data, row)
		exact[i] = device.Tensor{Type: device.F32, Rows: p.Rows, Cols: p.Cols, Data: floatBytes(row)}
	}
	return exact
}

// pack packs those plain weights that the plan multiplies by or embeds with, once.
func (p *plan) pack(d *Device) error {
	for _, ph := range p.phases {
		if ph.w < 0 {
			continue
		}
		if w := p.weights[ph.w]; w.packed == nil {
			part := device.Tensor{Type: device.F32, Rows: w.rows, Cols: w.cols, Data: floatBytes(w.vector)}
			if err := d.packWeight(w, []device.Tensor{part}); err != nil {
				return err
			}
			if w.rows > 1 && !p.reads(w) {
				d.release(int64(len(w.vector)) * 4)
				w.dropVector()
			}
		}
	}
	return nil
}

// reads reports whether a phase reads w's plain rows.
func (p *plan) reads(w *weight) bool {
	return slices.ContainsFunc(p.phases, func(ph phase) bool {
		return slices.ContainsFunc([]int32{ph.bias, ph.norm, ph.table}, func(i int32) bool { return i >= 0 && p.weights[i] == w })
	})
}
