package gguf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// KeyValue is a metadata entry to write. Value is one of bool, string, the sized integers, float32,
// float64, or a slice of one of them.
type KeyValue struct {
	Key   string
	Value any
}

// Write writes a file of version 3. The alignment is that of general.alignment among the metadata
// (a uint32), or 32.
func Write(w io.Writer, metadata []KeyValue, tensors []Tensor) error {
	head := append([]byte(magic), 3, 0, 0, 0)
	head = binary.LittleEndian.AppendUint64(head, uint64(len(tensors)))
	head = binary.LittleEndian.AppendUint64(head, uint64(len(metadata)))
	align := uint64(defaultAlignment)
	for _, kv := range metadata {
		if kv.Key == alignmentKey {
			a, ok := kv.Value.(uint32)
			if !ok || a == 0 || a > MaxAlignment || a&(a-1) != 0 {
				return fmt.Errorf("metadata key %q: %v is no power of two up to %d", kv.Key, kv.Value, MaxAlignment)
			}
			align = uint64(a)
		}
		head = appendString(head, kv.Key)
		var err error
		if head, err = appendValue(head, kv.Value); err != nil {
			return fmt.Errorf("metadata key %q: %w", kv.Key, err)
		}
	}
	offset := uint64(0)
	for i := range tensors {
		t := &tensors[i]
		number, ok := tensorNumber(t.Type)
		if !ok || len(t.Dims) == 0 || len(t.Dims) > MaxDims {
			return fmt.Errorf("tensor %q: type %v, shape %v", t.Name, t.Type, t.Dims)
		}
		if size, err := t.dataBytes(); err != nil || size != uint64(len(t.Data)) {
			return fmt.Errorf("tensor %q: %d bytes for type %v, shape %v", t.Name, len(t.Data), t.Type, t.Dims)
		}
		head = appendString(head, t.Name)
		head = binary.LittleEndian.AppendUint32(head, uint32(len(t.Dims)))
		for _, d := range t.Dims {
			head = binary.LittleEndian.AppendUint64(head, d)
		}
		head = binary.LittleEndian.AppendUint32(head, number)
		head = binary.LittleEndian.AppendUint64(head, offset)
		offset += padded(uint64(len(t.Data)), align)
	}
	if _, err := w.Write(pad(head, align)); err != nil {
		return err
	}
	for i := range tensors {
		data := tensors[i].Data
		if _, err := w.Write(data); err != nil {
			return err
		}
		if _, err := w.Write(make([]byte, padded(uint64(len(data)), align)-uint64(len(data)))); err != nil {
			return err
		}
	}
	return nil
}

func padded(n, align uint64) uint64 { return (n + align - 1) &^ (align - 1) }

func pad(b []byte, align uint64) []byte {
	return append(b, make([]byte, padded(uint64(len(b)), align)-uint64(len(b)))...)
}

func appendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
	return append(b, s...)
}

func appendValue(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case string:
		return appendString(binary.LittleEndian.AppendUint32(b, uint32(typeString)), v), nil
	case []string:
		b = appendArray(b, typeString, len(v))
		for _, s := range v {
			b = appendString(b, s)
		}
		return b, nil
	}
	typ, count, ok := fixedType(v)
	if !ok {
		return nil, fmt.Errorf("a value of Go type %T cannot be written", v)
	}
	if count < 0 {
		b = binary.LittleEndian.AppendUint32(b, uint32(typ))
	} else {
		b = appendArray(b, typ, count)
	}
	var body bytes.Buffer
	if err := binary.Write(&body, binary.LittleEndian, v); err != nil {
		return nil, err
	}
	return append(b, body.Bytes()...), nil
}

func appendArray(b []byte, elem valueType, count int) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(typeArray))
	b = binary.LittleEndian.AppendUint32(b, uint32(elem))
	return binary.LittleEndian.AppendUint64(b, uint64(count))
}

// fixedType gives the type of a value of fixed size; count is -1 unless it is an array.
func fixedType(v any) (t valueType, count int, ok bool) {
	switch v := v.(type) {
	case bool:
		return typeBool, -1, true
	case uint8:
		return typeUint8, -1, true
	case int8:
		return typeInt8, -1, true
	case uint16:
		return typeUint16, -1, true
	case int16:
		return typeInt16, -1, true
	case uint32:
		return typeUint32, -1, true
	case int32:
		return typeInt32, -1, true
	case uint64:
		return typeUint64, -1, true
	case int64:
		return typeInt64, -1, true
	case float32:
		return typeFloat32, -1, true
	case float64:
		return typeFloat64, -1, true
	case []bool:
		return typeBool, len(v), true
	case []uint8:
		return typeUint8, len(v), true
	case []int8:
		return typeInt8, len(v), true
	case []uint16:
		return typeUint16, len(v), true
	case []int16:
		return typeInt16, len(v), true
	case []uint32:
		return typeUint32, len(v), true
	case []int32:
		return typeInt32, len(v), true
	case []uint64:
		return typeUint64, len(v), true
	case []int64:
		return typeInt64, len(v), true
	case []float32:
		return typeFloat32, len(v), true
	case []float64:
		return typeFloat64, len(v), true
	}
	return 0, 0, false
}
