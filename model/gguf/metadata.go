package gguf

import (
	"encoding/binary"
	"math"
	"slices"
)

// value is a metadata value that lies in the file.
type value struct {
	typ   valueType
	elem  valueType // of an array
	count int       // of an array
	data  []byte
}

// Keys lists the metadata keys in the file's order.
func (f *File) Keys() []string { return slices.Clone(f.keys) }

// Has reports whether the file has the key, of whatever type.
func (f *File) Has(key string) bool {
	_, ok := f.values[key]
	return ok
}

// TypeOf names the type of the key's value ("uint32", "array of string"); "" if there is none.
func (f *File) TypeOf(key string) string {
	v, ok := f.values[key]
	switch {
	case !ok:
		return ""
	case v.typ == typeArray:
		return "array of " + v.elem.String()
	default:
		return v.typ.String()
	}
}

// The getters below return false if the key is missing or its value is of another type. What they
// return does not refer to the file.

// String returns a string value.
func (f *File) String(key string) (string, bool) {
	v, ok := f.values[key]
	if !ok || v.typ != typeString {
		return "", false
	}
	return string(v.data), true
}

// Bool returns a boolean value.
func (f *File) Bool(key string) (value, ok bool) {
	v, ok := f.values[key]
	if !ok || v.typ != typeBool {
		return false, false
	}
	return v.data[0] != 0, true
}

// Uint returns an integer value of any width that is not negative.
func (f *File) Uint(key string) (uint64, bool) {
	v, ok := f.values[key]
	if !ok {
		return 0, false
	}
	if v.typ == typeUint64 {
		return binary.LittleEndian.Uint64(v.data), true
	}
	n, ok := integer(v.typ, v.data)
	if !ok || n < 0 {
		return 0, false
	}
	return uint64(n), true
}

// Float returns a floating-point value of either width.
func (f *File) Float(key string) (float64, bool) {
	v, ok := f.values[key]
	if !ok {
		return 0, false
	}
	return float(v.typ, v.data)
}

// Len is the length of an array.
func (f *File) Len(key string) (int, bool) {
	v, ok := f.values[key]
	if !ok || v.typ != typeArray {
		return 0, false
	}
	return v.count, true
}

// Strings returns an array of strings.
func (f *File) Strings(key string) ([]string, bool) {
	v, ok := f.values[key]
	if !ok || v.typ != typeArray || v.elem != typeString {
		return nil, false
	}
	out := make([]string, v.count)
	at := v.data
	for i := range out {
		n := binary.LittleEndian.Uint64(at)
		out[i] = string(at[8 : 8+n])
		at = at[8+n:]
	}
	return out, true
}

// Ints returns an array of integers of any width; uint64 values beyond int64 are of another type.
func (f *File) Ints(key string) ([]int64, bool) { return elements(f, key, integer) }

// Bools returns an array of booleans.
func (f *File) Bools(key string) ([]bool, bool) { return elements(f, key, boolean) }

// Floats returns an array of floating-point values of either width.
func (f *File) Floats(key string) ([]float64, bool) { return elements(f, key, float) }

// elements decodes an array of values of one size.
func elements[T any](f *File, key string, decode func(valueType, []byte) (T, bool)) ([]T, bool) {
	v, ok := f.values[key]
	if !ok || v.typ != typeArray || valueTypes[v.elem].size == 0 {
		return nil, false
	}
	var zero [8]byte
	if _, ok := decode(v.elem, zero[:]); !ok {
		return nil, false
	}
	out := make([]T, v.count)
	size := valueTypes[v.elem].size
	for i := range out {
		if out[i], ok = decode(v.elem, v.data[i*size:]); !ok {
			return nil, false
		}
	}
	return out, true
}

func integer(t valueType, b []byte) (int64, bool) {
	le := binary.LittleEndian
	switch t {
	case typeUint8:
		return int64(b[0]), true
	case typeInt8:
		return int64(int8(b[0])), true
	case typeUint16:
		return int64(le.Uint16(b)), true
	case typeInt16:
		return int64(int16(le.Uint16(b))), true
	case typeUint32:
		return int64(le.Uint32(b)), true
	case typeInt32:
		return int64(int32(le.Uint32(b))), true
	case typeUint64:
		n := le.Uint64(b)
		return int64(n), n <= math.MaxInt64
	case typeInt64:
		return int64(le.Uint64(b)), true
	}
	return 0, false
}

func boolean(t valueType, b []byte) (bool, bool) { return b[0] != 0, t == typeBool }

func float(t valueType, b []byte) (float64, bool) {
	switch t {
	case typeFloat32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b))), true
	case typeFloat64:
		return math.Float64frombits(binary.LittleEndian.Uint64(b)), true
	}
	return 0, false
}
