package gguf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"unicode/utf8"

	"github.com/quire-serve/quire/device"
)

// ErrFormat is wrapped by every error about a file's contents.
var ErrFormat = errors.New("not a readable GGUF file")

// Limits of what is read. Real files stay far below all of them.
const (
	MaxKeys      = 1 << 16
	MaxTensors   = 1 << 16
	MaxKeyLen    = 1<<16 - 1
	MaxNameLen   = 255
	MaxDims      = 4
	MaxNesting   = 4
	MaxAlignment = 1 << 20
)

const (
	magic            = "GGUF"
	defaultAlignment = 32
	alignmentKey     = "general.alignment"
)

// Tensor is a tensor of a file. Dims[0] is the number of columns: the elements that lie together.
type Tensor struct {
	Name string
	Type device.Type
	Dims []uint64
	Data []byte // part of the file's mapping

	at int // where Data begins in the file
}

// Rows is the number of rows of Dims[0] elements.
func (t *Tensor) Rows() uint64 {
	rows := uint64(1)
	for _, d := range t.Dims[1:] {
		rows *= d // cannot overflow: Parse has checked the product of all
	}
	return rows
}

// File is an open GGUF file. It is safe for concurrent reading until Close.
type File struct {
	Version   uint32
	Alignment int
	Tensors   []Tensor

	keys    []string
	values  map[string]value
	tensors map[string]int
	data    []byte
	head    int // where the descriptions end
	unmap   func([]byte) error
}

// Parse reads a file that lies in memory. The result refers to data.
func Parse(data []byte) (*File, error) {
	r := reader{data: data}
	f, err := r.file()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return f, nil
}

// Tensor finds a tensor by its name.
func (f *File) Tensor(name string) (*Tensor, bool) {
	i, ok := f.tensors[name]
	if !ok {
		return nil, false
	}
	return &f.Tensors[i], true
}

// Head is the part of the file before the tensors' data: all keys and descriptions.
func (f *File) Head() []byte { return f.data[:f.head] }

// Size is the length of the file in bytes.
func (f *File) Size() int64 { return int64(len(f.data)) }

// reader walks over the bytes of a file. at never leaves data.
type reader struct {
	data []byte
	at   int
}

func (r *reader) left() uint64 { return uint64(len(r.data) - r.at) }

// take returns the next n bytes.
func (r *reader) take(n uint64) ([]byte, error) {
	if n > r.left() {
		return nil, fmt.Errorf("truncated at byte %d: %d more bytes wanted, %d left", r.at, n, r.left())
	}
	b := r.data[r.at : r.at+int(n) : r.at+int(n)]
	r.at += int(n)
	return b, nil
}

func (r *reader) uint32() (uint32, error) {
	b, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (r *reader) uint64() (uint64, error) {
	b, err := r.take(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// bytes reads a string: its length, then its bytes.
func (r *reader) bytes() ([]byte, error) {
	n, err := r.uint64()
	if err != nil {
		return nil, err
	}
	return r.take(n)
}

func (r *reader) name(what string, limit uint64) (string, error) {
	b, err := r.bytes()
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	if len(b) == 0 || uint64(len(b)) > limit {
		return "", fmt.Errorf("%s of %d bytes before byte %d: 1 to %d are allowed", what, len(b), r.at, limit)
	}
	if !utf8.Valid(b) {
		return "", fmt.Errorf("%s %q is not UTF-8", what, b)
	}
	return string(b), nil
}

func (r *reader) file() (*File, error) {
	head, err := r.take(4)
	if err != nil {
		return nil, err
	}
	if string(head) != magic {
		return nil, fmt.Errorf("it begins with %q, not with %q", head, magic)
	}
	version, err := r.uint32()
	if err != nil {
		return nil, err
	}
	switch {
	case version == 2 || version == 3:
	case bits.ReverseBytes32(version) == 2 || bits.ReverseBytes32(version) == 3:
		return nil, errors.New("big-endian files are not supported")
	default:
		return nil, fmt.Errorf("version %d; 2 and 3 are supported", version)
	}
	tensors, err := r.uint64()
	if err != nil {
		return nil, err
	}
	keys, err := r.uint64()
	if err != nil {
		return nil, err
	}
	if tensors > MaxTensors {
		return nil, fmt.Errorf("%d tensors; at most %d are allowed", tensors, MaxTensors)
	}
	if keys > MaxKeys {
		return nil, fmt.Errorf("%d metadata keys; at most %d are allowed", keys, MaxKeys)
	}
	f := &File{Version: version, Alignment: defaultAlignment, values: map[string]value{}, tensors: map[string]int{}, data: r.data}
	for range keys {
		if err := r.pair(f); err != nil {
			return nil, err
		}
	}
	if err := f.setAlignment(); err != nil {
		return nil, err
	}
	var offsets []uint64
	for range tensors {
		offset, err := r.tensor(f)
		if err != nil {
			return nil, err
		}
		offsets = append(offsets, offset)
	}
	f.head = r.at
	return f, r.place(f, offsets)
}

func (r *reader) pair(f *File) error {
	key, err := r.name("metadata key", MaxKeyLen)
	if err != nil {
		return err
	}
	if _, ok := f.values[key]; ok {
		return fmt.Errorf("metadata key %q comes twice", key)
	}
	t, err := r.uint32()
	if err != nil {
		return fmt.Errorf("metadata key %q: %w", key, err)
	}
	v, err := r.value(valueType(t), 0)
	if err != nil {
		return fmt.Errorf("metadata key %q: %w", key, err)
	}
	f.keys = append(f.keys, key)
	f.values[key] = v
	return nil
}

// value steps over a value and notes where it lies.
func (r *reader) value(t valueType, depth int) (value, error) {
	switch {
	case !t.valid():
		return value{}, fmt.Errorf("unknown value %v", t)
	case t == typeString:
		b, err := r.bytes()
		return value{typ: t, data: b}, err
	case t == typeArray:
		return r.array(depth + 1)
	default:
		b, err := r.take(uint64(valueTypes[t].size))
		if err == nil && t == typeBool && b[0] > 1 {
			err = fmt.Errorf("%d is not a boolean", b[0])
		}
		return value{typ: t, data: b}, err
	}
}

func (r *reader) array(depth int) (value, error) {
	if depth > MaxNesting {
		return value{}, fmt.Errorf("arrays nested deeper than %d", MaxNesting)
	}
	n, err := r.uint32()
	if err != nil {
		return value{}, err
	}
	elem := valueType(n)
	if !elem.valid() {
		return value{}, fmt.Errorf("array of unknown value %v", elem)
	}
	count, err := r.uint64()
	if err != nil {
		return value{}, err
	}
	// The smallest a value can be: a string is its length, an array its type and length.
	size := uint64(valueTypes[elem].size)
	switch elem {
	case typeString:
		size = 8
	case typeArray:
		size = 12
	}
	if count > r.left()/size {
		return value{}, fmt.Errorf("array of %d %v values, but only %d bytes are left", count, elem, r.left())
	}
	v := value{typ: typeArray, elem: elem, count: int(count)}
	if valueTypes[elem].size > 0 {
		v.data, err = r.take(count * size)
		return v, err
	}
	start := r.at
	for i := range count {
		if _, err := r.value(elem, depth); err != nil {
			return value{}, fmt.Errorf("array element %d: %w", i, err)
		}
	}
	v.data = r.data[start:r.at]
	return v, nil
}

func (f *File) setAlignment() error {
	if !f.Has(alignmentKey) {
		return nil
	}
	a, ok := f.Uint(alignmentKey)
	if !ok || a == 0 || a > MaxAlignment || a&(a-1) != 0 {
		return fmt.Errorf("metadata key %q must be a power of two up to %d", alignmentKey, MaxAlignment)
	}
	f.Alignment = int(a)
	return nil
}

// tensor reads one tensor's description; the data is found once all are read.
func (r *reader) tensor(f *File) (offset uint64, err error) {
	name, err := r.name("tensor name", MaxNameLen)
	if err != nil {
		return 0, err
	}
	fail := func(err error) (uint64, error) { return 0, fmt.Errorf("tensor %q: %w", name, err) }
	if _, ok := f.tensors[name]; ok {
		return fail(errors.New("comes twice"))
	}
	n, err := r.uint32()
	if err != nil {
		return fail(err)
	}
	if n == 0 || n > MaxDims {
		return fail(fmt.Errorf("%d dimensions; 1 to %d are allowed", n, MaxDims))
	}
	t := Tensor{Name: name, Dims: make([]uint64, n)}
	for i := range t.Dims {
		if t.Dims[i], err = r.uint64(); err != nil {
			return fail(err)
		}
	}
	number, err := r.uint32()
	if err != nil {
		return fail(err)
	}
	if t.Type, err = tensorType(number); err != nil {
		return fail(err)
	}
	if offset, err = r.uint64(); err != nil {
		return fail(err)
	}
	f.tensors[name] = len(f.Tensors)
	f.Tensors = append(f.Tensors, t)
	return offset, nil
}

// dataBytes is the size of t's data.
func (t *Tensor) dataBytes() (uint64, error) {
	elements := uint64(1)
	for _, d := range t.Dims {
		hi, lo := bits.Mul64(elements, d)
		if d == 0 || hi != 0 || lo > 1<<56 {
			return 0, fmt.Errorf("shape %v is empty or too large", t.Dims)
		}
		elements = lo
	}
	block := uint64(t.Type.BlockLen())
	if t.Dims[0]%block != 0 {
		return 0, fmt.Errorf("%d columns of type %v, which comes in blocks of %d", t.Dims[0], t.Type, block)
	}
	hi, n := bits.Mul64(elements/block, uint64(t.Type.BlockBytes()))
	if hi != 0 {
		return 0, fmt.Errorf("shape %v is too large", t.Dims)
	}
	return n, nil
}

// place cuts each tensor's data out of what follows the descriptions.
func (r *reader) place(f *File, offsets []uint64) error {
	if len(offsets) == 0 {
		return nil
	}
	align := uint64(f.Alignment)
	start := (uint64(r.at) + align - 1) &^ (align - 1)
	if start > uint64(len(r.data)) {
		return fmt.Errorf("truncated at byte %d: the tensors would begin at %d", len(r.data), start)
	}
	body := r.data[start:]
	for i := range f.Tensors {
		t := &f.Tensors[i]
		size, err := t.dataBytes()
		if err != nil {
			return fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		at := offsets[i]
		if at%align != 0 {
			return fmt.Errorf("tensor %q: offset %d is not a multiple of %d", t.Name, at, align)
		}
		if at > uint64(len(body)) || size > uint64(len(body))-at {
			return fmt.Errorf("tensor %q: %d bytes at offset %d, but the file holds %d bytes of tensors: it is truncated or damaged", t.Name, size, at, len(body))
		}
		t.Data = body[at : at+size : at+size]
		t.at = int(start + at)
	}
	return nil
}
