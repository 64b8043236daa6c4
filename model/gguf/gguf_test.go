package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/quire-serve/quire/device"
)

// sample is a file with a value of every type and tensors of several.
func sample(t testing.TB, alignment uint32) []byte {
	t.Helper()
	metadata := []KeyValue{
		{"general.architecture", "llama"},
		{alignmentKey, alignment},
		{"u8", uint8(200)}, {"i8", int8(-3)}, {"u16", uint16(60000)}, {"i16", int16(-300)},
		{"u32", uint32(4e9)}, {"i32", int32(7)}, {"u64", uint64(math.MaxUint64)}, {"i64", int64(-1)},
		{"f32", float32(1.5)}, {"f64", 2.25}, {"yes", true}, {"no", false}, {"empty", ""},
		{"strings", []string{"a", "", "żółw"}}, {"no strings", []string{}},
		{"i32s", []int32{-1, 2}}, {"u8s", []uint8{1, 255}}, {"i8s", []int8{-1, 1}}, {"u16s", []uint16{1}}, {"i16s", []int16{-1}},
		{"u32s", []uint32{1}}, {"u64s", []uint64{math.MaxUint64}}, {"i64s", []int64{-9}},
		{"f32s", []float32{0.5, -1}}, {"f64s", []float64{0.25}}, {"bools", []bool{true, false}},
	}
	ramp := make([]byte, 4096)
	for i := range ramp {
		ramp[i] = byte(i)
	}
	tensors := []Tensor{
		{Name: "vector", Type: device.F32, Dims: []uint64{5}, Data: ramp[:20]},
		{Name: "matrix", Type: device.Q4_1, Dims: []uint64{64, 3}, Data: ramp[:120]},
		{Name: "cube", Type: device.F16, Dims: []uint64{2, 3, 4}, Data: ramp[:48]},
	}
	var b bytes.Buffer
	if err := Write(&b, metadata, tensors); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	for _, alignment := range []uint32{32, 8, 64} {
		data := sample(t, alignment)
		path := filepath.Join(t.TempDir(), "m.gguf")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		checkSample(t, f, alignment)
		for i := range f.Tensors {
			f.Drop(&f.Tensors[i]) // the data must still be there afterwards
		}
		checkSample(t, f, alignment)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatalf("second Close: %v", err)
		}
		if f.Has("u8") {
			t.Error("a closed file still has keys")
		}
		// Version 2 differs in its number only.
		data[4] = 2
		if f, err = Parse(data); err != nil || f.Version != 2 {
			t.Fatalf("version 2: %v", err)
		}
		checkSample(t, f, alignment)
	}
}

func checkSample(t *testing.T, f *File, alignment uint32) {
	t.Helper()
	if f.Alignment != int(alignment) || len(f.Keys()) != 28 || f.Keys()[0] != "general.architecture" {
		t.Errorf("alignment %d, keys %q", f.Alignment, f.Keys())
	}
	type answer struct {
		v  any
		ok bool
	}
	of := func(v any, ok bool) answer { return answer{v, ok} }
	str := func(k string) answer { v, ok := f.String(k); return of(v, ok) }
	num := func(k string) answer { v, ok := f.Uint(k); return of(v, ok) }
	flo := func(k string) answer { v, ok := f.Float(k); return of(v, ok) }
	boo := func(k string) answer { v, ok := f.Bool(k); return of(v, ok) }
	strs := func(k string) answer { v, ok := f.Strings(k); return of(v, ok) }
	ints := func(k string) answer { v, ok := f.Ints(k); return of(v, ok) }
	flos := func(k string) answer { v, ok := f.Floats(k); return of(v, ok) }
	length := func(k string) answer { v, ok := f.Len(k); return of(v, ok) }
	for _, c := range []struct {
		get  func(string) answer
		key  string
		want any // nil: no answer
	}{
		{str, "general.architecture", "llama"}, {str, "empty", ""}, {str, "u8", nil}, {str, "missing", nil},
		{num, "u8", uint64(200)}, {num, "u16", uint64(60000)}, {num, "u32", uint64(4e9)}, {num, "u64", uint64(math.MaxUint64)},
		{num, "i32", uint64(7)}, {num, "i8", nil}, {num, "i16", nil}, {num, "i64", nil}, {num, "f32", nil}, {num, "yes", nil}, {num, "i32s", nil},
		{flo, "f32", 1.5}, {flo, "f64", 2.25}, {flo, "u8", nil}, {flo, "f32s", nil}, {flo, "missing", nil},
		{boo, "yes", true}, {boo, "no", false}, {boo, "u8", nil},
		{strs, "strings", []string{"a", "", "żółw"}}, {strs, "no strings", []string{}}, {strs, "i32s", nil}, {strs, "empty", nil},
		{ints, "i32s", []int64{-1, 2}}, {ints, "u8s", []int64{1, 255}}, {ints, "i8s", []int64{-1, 1}}, {ints, "u16s", []int64{1}},
		{ints, "i16s", []int64{-1}}, {ints, "u32s", []int64{1}}, {ints, "i64s", []int64{-9}}, {ints, "u64s", nil},
		{ints, "f32s", nil}, {ints, "bools", nil}, {ints, "strings", nil}, {ints, "u8", nil},
		{flos, "f32s", []float64{0.5, -1}}, {flos, "f64s", []float64{0.25}}, {flos, "i32s", nil},
		{length, "strings", 3}, {length, "bools", 2}, {length, "empty", nil},
	} {
		got := c.get(c.key)
		if got.ok != (c.want != nil) || got.ok && !reflect.DeepEqual(got.v, c.want) {
			t.Errorf("%s: %#v, want %#v", c.key, got, c.want)
		}
	}
	if a, b := f.TypeOf("strings"), f.TypeOf("f64"); a != "array of string" || b != "float64" || f.TypeOf("missing") != "" {
		t.Errorf("types %q, %q", a, b)
	}
	for _, c := range []struct {
		name string
		typ  device.Type
		dims []uint64
		rows uint64
		len  int
	}{{"vector", device.F32, []uint64{5}, 1, 20}, {"matrix", device.Q4_1, []uint64{64, 3}, 3, 120}, {"cube", device.F16, []uint64{2, 3, 4}, 12, 48}} {
		x, ok := f.Tensor(c.name)
		if !ok || x.Type != c.typ || !slices.Equal(x.Dims, c.dims) || x.Rows() != c.rows || len(x.Data) != c.len {
			t.Fatalf("tensor %s: %+v", c.name, x)
		}
		for i, b := range x.Data {
			if b != byte(i) {
				t.Fatalf("tensor %s: byte %d is %d", c.name, i, b)
			}
		}
	}
	if _, ok := f.Tensor("missing"); ok {
		t.Error("found a tensor that is not there")
	}
}

// raw puts a file together piece by piece, so that it can be wrong.
type raw []byte

func (r raw) u32(v uint32) raw    { return binary.LittleEndian.AppendUint32(r, v) }
func (r raw) u64(v uint64) raw    { return binary.LittleEndian.AppendUint64(r, v) }
func (r raw) str(s string) raw    { return append(r.u64(uint64(len(s))), s...) }
func (r raw) bytes(b ...byte) raw { return append(r, b...) }

func header(version uint32, tensors, keys uint64) raw {
	return raw(magic).u32(version).u64(tensors).u64(keys)
}

// oneTensor is a file with one tensor description and body bytes after it.
func oneTensor(name string, typ uint32, offset uint64, body int, dims ...uint64) []byte {
	r := header(3, 1, 0).str(name).u32(uint32(len(dims)))
	for _, d := range dims {
		r = r.u64(d)
	}
	r = r.u32(typ).u64(offset)
	return append(pad(r, defaultAlignment), make([]byte, body)...)
}

func TestParseRefuses(t *testing.T) {
	nested := header(3, 0, 1).str("k").u32(uint32(typeArray))
	for range MaxNesting + 1 {
		nested = nested.u32(uint32(typeArray)).u64(1)
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "truncated at byte 0"},
		{"other magic", []byte("PK\x03\x04xxxx"), `begins with "PK`},
		{"version 1", header(1, 0, 0), "version 1; 2 and 3"},
		{"version 4", header(4, 0, 0), "version 4; 2 and 3"},
		{"big-endian", header(3<<24, 0, 0), "big-endian"},
		{"too many tensors", header(3, MaxTensors+1, 0), "65537 tensors"},
		{"too many keys", header(3, 0, 1<<62), "metadata keys"},
		{"no keys", header(3, 0, 1), "truncated"},
		{"long key", header(3, 0, 1).u64(1 << 63), "truncated"},
		{"empty key", header(3, 0, 1).str("").u32(0).bytes(1), "metadata key of 0 bytes"},
		{"key no UTF-8", header(3, 0, 1).str("\xff").u32(0).bytes(1), "not UTF-8"},
		{"key twice", header(3, 0, 2).str("k").u32(0).bytes(1).str("k").u32(0).bytes(1), `"k" comes twice`},
		{"unknown value", header(3, 0, 1).str("k").u32(13), `"k": unknown value type 13`},
		{"bad boolean", header(3, 0, 1).str("k").u32(uint32(typeBool)).bytes(2), "2 is not a boolean"},
		{"long string", header(3, 0, 1).str("k").u32(uint32(typeString)).u64(math.MaxUint64), "truncated"},
		{"long array", header(3, 0, 1).str("k").u32(uint32(typeArray)).u32(uint32(typeUint64)).u64(1 << 61), "array of 2305843009213693952 uint64"},
		{"long array of strings", header(3, 0, 1).str("k").u32(uint32(typeArray)).u32(uint32(typeString)).u64(1 << 40), "array of 1099511627776 string"},
		{"array of unknown", header(3, 0, 1).str("k").u32(uint32(typeArray)).u32(99).u64(1), "array of unknown value type 99"},
		{"nested arrays", nested, "nested deeper than 4"},
		{"alignment no power", header(3, 0, 1).str(alignmentKey).u32(uint32(typeUint32)).u32(24), "power of two"},
		{"alignment zero", header(3, 0, 1).str(alignmentKey).u32(uint32(typeUint32)).u32(0), "power of two"},
		{"alignment no integer", header(3, 0, 1).str(alignmentKey).u32(uint32(typeString)).str("32"), "power of two"},
		{"no dimensions", oneTensor("x", 0, 0, 64), "0 dimensions"},
		{"five dimensions", oneTensor("x", 0, 0, 64, 1, 1, 1, 1, 1), "5 dimensions"},
		{"empty dimension", oneTensor("x", 0, 0, 64, 4, 0), "empty or too large"},
		{"overflowing shape", oneTensor("x", 0, 0, 64, 1<<33, 1<<33), "empty or too large"},
		{"overflowing to zero", oneTensor("x", 0, 0, 64, 1<<32, 1<<32), "empty or too large"},
		{"part of a block", oneTensor("x", 3, 0, 64, 33), "33 columns of type Q4_1, which comes in blocks of 32"},
		{"unsupported type", oneTensor("x", 20, 0, 64, 32), `tensor "x": type IQ4_NL is not supported`},
		{"removed type", oneTensor("x", 4, 0, 64, 32), "type 4 is unknown"},
		{"crooked offset", oneTensor("x", 0, 8, 64, 4), "offset 8 is not a multiple of 32"},
		{"offset beyond", oneTensor("x", 0, 96, 64, 4), "truncated or damaged"},
		{"huge offset", oneTensor("x", 0, math.MaxUint64-31, 64, 4), "truncated or damaged"},
		{"data beyond", oneTensor("x", 0, 32, 64, 9), "36 bytes at offset 32"},
		{"long name", oneTensor(strings.Repeat("x", 256), 0, 0, 64, 4), "tensor name of 256 bytes"},
		{"tensor twice", append(header(3, 2, 0).str("x").u32(1).u64(1).u32(0).u64(0).str("x").u32(1).u64(1).u32(0).u64(0), make([]byte, 64)...), `"x": comes twice`},
		{"ends before the tensors", header(3, 1, 0).str("x").u32(1).u64(1).u32(0).u64(0), "the tensors would begin at"},
	} {
		f, err := Parse(c.data)
		if err == nil {
			t.Errorf("%s: read %d tensors", c.name, len(f.Tensors))
		} else if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, want %q", c.name, err, c.want)
		}
	}
}

// TestTruncated cuts a good file at every byte: all but the last padding must be missed.
func TestTruncated(t *testing.T) {
	data := sample(t, 32)
	end := len(data) - 16 // the last tensor's 48 bytes are padded to 64
	for n := range end {
		if _, err := Parse(data[:n]); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(data), err)
		}
	}
	if _, err := Parse(data[:end]); err != nil {
		t.Fatalf("without padding: %v", err)
	}
}

// TestHostileCounts feeds claims of huge sizes and checks that they cost no memory.
func TestHostileCounts(t *testing.T) {
	body := make([]byte, 1<<20)
	files := [][]byte{
		append(header(3, 0, 1).str("k").u32(uint32(typeArray)).u32(uint32(typeString)).u64(1<<17), body...),
		append(header(3, MaxTensors, MaxKeys), body...),
		append(header(3, 0, 1).str("k").u32(uint32(typeArray)).u32(uint32(typeArray)).u64(80000), body...),
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, data := range files {
		_, _ = Parse(data)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<10 {
		t.Errorf("parsing allocated %d bytes", grown)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.gguf")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text.gguf")
	if err := os.WriteFile(text, []byte("hello, this is no model"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		is   error
		want string
	}{
		{filepath.Join(dir, "none.gguf"), os.ErrNotExist, "none.gguf"},
		{dir, ErrFormat, "no regular file"},
		{empty, ErrFormat, "it is empty"},
		{text, ErrFormat, `text.gguf: not a readable GGUF file: it begins with "hell"`},
	} {
		if _, err := Open(c.path); !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.path, err)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, c := range []struct {
		name     string
		metadata []KeyValue
		tensors  []Tensor
	}{
		{"Go int", []KeyValue{{"k", 1}}, nil},
		{"nested array", []KeyValue{{"k", [][]string{{"a"}}}}, nil},
		{"crooked alignment", []KeyValue{{alignmentKey, uint32(3)}}, nil},
		{"no shape", nil, []Tensor{{Name: "x", Type: device.F32}}},
		{"wrong size", nil, []Tensor{{Name: "x", Type: device.F32, Dims: []uint64{2}, Data: make([]byte, 4)}}},
		{"no type", nil, []Tensor{{Name: "x", Dims: []uint64{1}, Data: make([]byte, 4)}}},
	} {
		if err := Write(&bytes.Buffer{}, c.metadata, c.tensors); err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
}

// FuzzParse reads arbitrary bytes and, where they are a file, everything in it.
func FuzzParse(f *testing.F) {
	data := sample(f, 32)
	f.Add(data)
	for _, n := range []int{0, 4, 8, 23, 24, 60, 200, 400, len(data) / 2, len(data) - 100, len(data) - 17} {
		f.Add(data[:n])
	}
	f.Add(oneTensor("x", 3, 0, 64, 64))
	f.Add(oneTensor("x", 0, math.MaxUint64-31, 64, 1<<62, 4))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		for _, key := range file.Keys() {
			if file.TypeOf(key) == "" {
				t.Fatalf("key %q has no type", key)
			}
			file.String(key)
			file.Uint(key)
			file.Float(key)
			file.Bool(key)
			file.Len(key)
			file.Strings(key)
			file.Ints(key)
			file.Floats(key)
		}
		for i := range file.Tensors {
			x := &file.Tensors[i]
			elements := x.Dims[0] * x.Rows()
			if want := elements / uint64(x.Type.BlockLen()) * uint64(x.Type.BlockBytes()); uint64(len(x.Data)) != want {
				t.Fatalf("tensor %q: %d bytes, want %d", x.Name, len(x.Data), want)
			}
			if elements < 1<<16 {
				if err := Dequantize(x.Type, x.Data, make([]float32, elements)); err != nil {
					t.Fatal(err)
				}
			}
			file.Drop(x)
		}
	})
}
