package gguf

import (
	"fmt"

	"github.com/quire-serve/quire/device"
)

// tensorTypes maps the numbers of the file format to the types that Quire computes with.
var tensorTypes = map[uint32]device.Type{
	0: device.F32, 1: device.F16, 30: device.BF16,
	2: device.Q4_0, 3: device.Q4_1, 6: device.Q5_0, 7: device.Q5_1, 8: device.Q8_0,
	10: device.Q2_K, 11: device.Q3_K, 12: device.Q4_K, 13: device.Q5_K, 14: device.Q6_K,
}

// otherTensorTypes names what a file may hold and Quire does not read, for the error.
var otherTensorTypes = map[uint32]string{
	9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
	21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
	29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}

func tensorType(n uint32) (device.Type, error) {
	if t, ok := tensorTypes[n]; ok {
		return t, nil
	}
	if name, ok := otherTensorTypes[n]; ok {
		return 0, fmt.Errorf("type %s is not supported", name)
	}
	return 0, fmt.Errorf("type %d is unknown", n)
}

func tensorNumber(t device.Type) (uint32, bool) {
	for n, have := range tensorTypes {
		if have == t {
			return n, true
		}
	}
	return 0, false
}

// valueType is the type of a metadata value.
type valueType uint32

const (
	typeUint8 valueType = iota
	typeInt8
	typeUint16
	typeInt16
	typeUint32
	typeInt32
	typeFloat32
	typeBool
	typeString
	typeArray
	typeUint64
	typeInt64
	typeFloat64
)

var valueTypes = [...]struct {
	name string
	size int // of one value in bytes; 0 if it varies
}{
	typeUint8: {"uint8", 1}, typeInt8: {"int8", 1}, typeUint16: {"uint16", 2}, typeInt16: {"int16", 2},
	typeUint32: {"uint32", 4}, typeInt32: {"int32", 4}, typeFloat32: {"float32", 4}, typeBool: {"bool", 1},
	typeString: {"string", 0}, typeArray: {"array", 0},
	typeUint64: {"uint64", 8}, typeInt64: {"int64", 8}, typeFloat64: {"float64", 8},
}

func (t valueType) valid() bool { return int(t) < len(valueTypes) }

func (t valueType) String() string {
	if !t.valid() {
		return fmt.Sprintf("type %d", uint32(t))
	}
	return valueTypes[t].name
}
