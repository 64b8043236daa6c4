package model

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model/gguf"
)

// LoadOptions are how to load a model. The zero value is good.
type LoadOptions struct {
	// Progress is called as weights reach the device, with bytes of the file; may be nil.
	Progress func(done, total int64)
	// MaxContext lowers the context length; 0 keeps the model's.
	MaxContext int
}

// maxRopeBytes bounds the table of rotations; a longer context must be asked for in parts.
const maxRopeBytes = 1 << 30

// Load copies the weights to dev and writes the forward pass. Pages of the file are given back to
// the system as soon as they are copied, so that weights are not in memory twice.
func (s *Spec) Load(dev device.Device, o LoadOptions) (*Model, error) {
	context := s.Config.ContextLength
	if o.MaxContext < 0 {
		return nil, fmt.Errorf("load %s: a context of %d tokens", s.ID, o.MaxContext)
	}
	if o.MaxContext > 0 {
		context = min(context, o.MaxContext)
	}
	l := &loader{file: s.File, dev: dev, progress: o.Progress, used: map[string]bool{}}
	if l.progress == nil {
		l.progress = func(int64, int64) {}
	}
	for i := range s.File.Tensors {
		l.total += int64(len(s.File.Tensors[i].Data))
	}
	program, err := l.llama(s.Config, context)
	if err == nil {
		err = l.err
	}
	if err == nil {
		err = l.leftover()
	}
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", s.ID, err)
	}
	l.progress(l.total, l.total)
	return &Model{Spec: s, Program: program, Context: context}, nil
}

// loader copies tensors to a device. After the first error it does nothing.
type loader struct {
	file        *gguf.File
	dev         device.Device
	progress    func(done, total int64)
	done, total int64
	used        map[string]bool
	err         error
}

func (l *loader) fail(format string, args ...any) {
	if l.err == nil {
		l.err = fmt.Errorf(format, args...)
	}
}

// tensor finds a tensor and checks its shape: rows of cols elements.
func (l *loader) tensor(name string, rows, cols int) (*gguf.Tensor, bool) {
	if l.err != nil {
		return nil, false
	}
	t, ok := l.file.Tensor(name)
	if !ok {
		l.fail("tensor %q is missing", name)
		return nil, false
	}
	if t.Dims[0] != uint64(cols) || t.Rows() != uint64(rows) {
		want := []int{cols, rows}
		if rows == 1 {
			want = want[:1]
		}
		l.fail("tensor %q has shape %v, want %v", name, t.Dims, want)
		return nil, false
	}
	l.used[name] = true
	return t, true
}

// has reports whether the file has a tensor.
func (l *loader) has(name string) bool {
	_, ok := l.file.Tensor(name)
	return ok
}

// part is a tensor that a weight is made of, with the rows it must have.
type part struct {
	name string
	rows int
}

// matrix loads parts, stacked by rows, as one weight.
func (l *loader) matrix(name string, cols int, parts ...part) device.Weight {
	var tensors []*gguf.Tensor
	var stack []device.Tensor
	for _, p := range parts {
		t, ok := l.tensor(p.name, p.rows, cols)
		if !ok {
			return nil
		}
		tensors = append(tensors, t)
		stack = append(stack, device.Tensor{Type: t.Type, Rows: p.rows, Cols: cols, Data: t.Data})
	}
	w := l.load(name, stack...)
	for _, t := range tensors {
		l.file.Drop(t)
		l.done += int64(len(t.Data))
	}
	l.progress(l.done, l.total)
	return w
}

// vector loads a tensor of one row.
func (l *loader) vector(name string, cols int) device.Weight {
	return l.matrix(name, cols, part{name, 1})
}

// joined loads tensors of one row each, end to end, as one row: the bias of a stacked matrix.
func (l *loader) joined(name string, parts ...part) device.Weight {
	var row []float32
	for _, p := range parts {
		row = append(row, l.floats(p.name, p.rows)...)
	}
	if l.err != nil {
		return nil
	}
	return l.load(name, device.Tensor{Type: device.F32, Rows: 1, Cols: len(row), Data: floatBytes(row)})
}

// floats reads a tensor of n elements on the host.
func (l *loader) floats(name string, n int) []float32 {
	t, ok := l.tensor(name, 1, n)
	if !ok {
		return nil
	}
	row := make([]float32, n)
	if err := gguf.Dequantize(t.Type, t.Data, row); err != nil {
		l.fail("tensor %q: %w", name, err)
	}
	l.done += int64(len(t.Data))
	return row
}

func (l *loader) load(name string, stack ...device.Tensor) device.Weight {
	if l.err != nil {
		return nil
	}
	w, err := l.dev.Load(name, stack...)
	if err != nil {
		l.fail("weight %s: %w", name, err)
		return nil
	}
	return w
}

// rope loads the table of rotations for positions below context. Angles are computed in float64
// and rounded once. factors, if any, divide the frequency of each pair.
func (l *loader) rope(c Config, context int, factors []float32) device.Weight {
	if l.err != nil {
		return nil
	}
	if bytes := int64(context) * int64(c.HeadDim) * 4; bytes > maxRopeBytes {
		l.fail("a context of %d tokens needs a rotary table of %d bytes, at most %d are allowed: lower the context", context, bytes, maxRopeBytes)
		return nil
	}
	half := c.HeadDim / 2
	frequency := make([]float64, half)
	for i := range frequency {
		frequency[i] = math.Pow(float64(c.RopeBase), -float64(i)/float64(half)) / float64(c.RopeScale)
		if factors != nil {
			frequency[i] /= float64(factors[i])
		}
	}
	table := make([]float32, 0, context*c.HeadDim)
	for p := range context {
		row := table[len(table) : len(table)+c.HeadDim]
		for i, f := range frequency {
			sin, cos := math.Sincos(float64(p) * f)
			row[i], row[half+i] = float32(cos), float32(sin)
		}
		table = table[:len(table)+c.HeadDim]
	}
	return l.load("rope", device.Tensor{Type: device.F32, Rows: context, Cols: c.HeadDim, Data: floatBytes(table)})
}

// leftover refuses a file with tensors that the forward pass did not ask for: it would compute
// something else than the model.
func (l *loader) leftover() error {
	var names []string
	for i := range l.file.Tensors {
		if name := l.file.Tensors[i].Name; !l.used[name] {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	n := len(names)
	if n > 3 {
		names = append(names[:3], "…")
	}
	return fmt.Errorf("%w: %d tensors that its architecture does not have: %s", ErrUnsupported, n, strings.Join(names, ", "))
}

func floatBytes(f []float32) []byte {
	b := make([]byte, 0, len(f)*4)
	for _, x := range f {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}
