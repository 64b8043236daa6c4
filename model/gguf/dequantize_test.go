package gguf

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/quire-serve/quire/device"
)

// TestDequantize compares every type with what gguf-py reads in the same random blocks, bit for bit.
func TestDequantize(t *testing.T) {
	raw, err := os.ReadFile("testdata/blocks.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden map[string]struct{ Data, Values []byte }
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	for typ := device.F32; typ.Valid(); typ++ {
		t.Run(typ.String(), func(t *testing.T) {
			g, ok := golden[typ.String()]
			if !ok {
				t.Fatal("no golden blocks")
			}
			got := make([]float32, len(g.Values)/4)
			if err := Dequantize(typ, g.Data, got); err != nil {
				t.Fatal(err)
			}
			for i, x := range got {
				want := math.Float32frombits(binary.LittleEndian.Uint32(g.Values[i*4:]))
				if x != want {
					t.Fatalf("element %d is %v, want %v", i, x, want)
				}
			}
		})
	}
}

func TestDequantizeRefuses(t *testing.T) {
	for _, c := range []struct {
		name     string
		typ      device.Type
		src, dst int
	}{
		{"half a block", device.Q4_0, 17, 32},
		{"too few elements", device.Q4_1, 40, 63},
		{"too many elements", device.F32, 4, 2},
		{"no type", 0, 4, 1},
		{"unknown type", device.Q6_K + 1, 4, 1},
	} {
		if err := Dequantize(c.typ, make([]byte, c.src), make([]float32, c.dst)); err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
}

// TestHalf checks all 65,536 halves against their definition in float64.
func TestHalf(t *testing.T) {
	for h := range 1 << 16 {
		sign, exponent, mantissa := 1-2*float64(h>>15), h>>10&31, float64(h&1023)
		want := sign * math.Ldexp(1024+mantissa, exponent-25)
		switch {
		case exponent == 0:
			want = sign * math.Ldexp(mantissa, -24)
		case exponent == 31 && mantissa == 0:
			want = math.Inf(int(sign))
		case exponent == 31:
			if got := Half(uint16(h)); got == got {
				t.Fatalf("%#x is %v, want NaN", h, got)
			}
			continue
		}
		if got := Half(uint16(h)); float64(got) != want || math.Signbit(float64(got)) != (sign < 0) {
			t.Fatalf("%#x is %v, want %v", h, got, want)
		}
	}
}
