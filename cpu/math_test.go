package cpu

import (
	"encoding/hex"
	"encoding/json"
	"math"
	"math/big"
	"os"
	"testing"

	"github.com/quire-serve/quire/device"
	"pgregory.net/rapid"
)

// anyFloat draws binary32 numbers of every exponent, and often those with few bits set, whose sums
// fall half-way between two others.
func anyFloat() *rapid.Generator[float32] {
	return rapid.Custom(func(t *rapid.T) float32 {
		bits := rapid.Uint32().Draw(t, "bits")
		if rapid.Bool().Draw(t, "simple") {
			bits &= 0xffc00000 | 1<<rapid.IntRange(0, 22).Draw(t, "bit")
		}
		if bits>>23&255 == 255 {
			bits &^= 1 << 30
		}
		return math.Float32frombits(bits)
	})
}

func TestFMARoundsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for range 1000 {
			a, b, c := anyFloat().Draw(t, "a"), anyFloat().Draw(t, "b"), anyFloat().Draw(t, "c")
			if rapid.Bool().Draw(t, "near") { // c close to half a unit of the product
				c = float32(math.Ldexp(float64(a)*float64(b), rapid.IntRange(-60, 26).Draw(t, "shift")))
				if math.IsInf(float64(c), 0) {
					continue
				}
			}
			checkFMA(t, a, b, c)
		}
	})
}

// TestFMAHalfway takes the cases where binary64 alone rounds twice.
func TestFMAHalfway(t *testing.T) {
	one := float32(1)
	ulp := math.Nextafter32(1, 2) - 1
	for _, c := range [][3]float32{
		{one, 1 + ulp, ulp / 2 * (1 + ulp)},             // above half-way, beyond binary64
		{1 + ulp, 1 + ulp, ulp / 2},                     // 1 + 2.5 ulp + ulp²
		{0x1p-30, 0x1p-30, 1 + ulp},                     // far below: must not round away
		{0x1.000002p0, 0x1.000002p0, -0x1p-24},          // just below half-way
		{0x1p-75, 0x1p-75, math.SmallestNonzeroFloat32}, // half-way among subnormals
		{-0x1p-75, 0x1p-75, 3 * math.SmallestNonzeroFloat32},
		{0x1p-100, 0x1p-100, 0x1.000001p-125},
		{-0x1p-100, 0x1p-60, math.Nextafter32(1, 2)},
	} {
		checkFMA(t, c[0], c[1], c[2])
	}
	// Every pair of neighbours a unit apart, pushed off the middle by the least amount either way.
	for i := range 1000 {
		x := math.Float32frombits(0x3f800000 + uint32(i)*8191)
		half := (math.Nextafter32(x, 4) - x) / 2
		for _, tiny := range []float32{0x1p-60, -0x1p-60, 0} {
			// x + half + tiny = half·1 + … needs three terms: (half·(1+2^-23))·1 lies above half.
			checkFMA(t, half, 1+tiny*0x1p37, x)
			checkFMA(t, half, math.Nextafter32(1, 2), x)
			checkFMA(t, half, math.Nextafter32(1, 0), x)
			checkFMA(t, half, 1, x)
		}
	}
}

func checkFMA(t interface{ Fatalf(string, ...any) }, a, b, c float32) {
	exact := new(big.Float).SetPrec(1000).Mul(big.NewFloat(float64(a)), big.NewFloat(float64(b)))
	exact.SetPrec(1000).Add(exact, big.NewFloat(float64(c)))
	want, _ := exact.Float32()
	if got := fma32(a, b, c); got != want {
		t.Fatalf("fma32(%x, %x, %x) = %x, want %x", a, b, c, got, want)
	}
}

func TestExp(t *testing.T) {
	worst := 0.0
	for i := range 400_000 {
		x := float32(-87 + 175*float64(i)/400_000)
		want := math.Exp(float64(x))
		worst = max(worst, math.Abs(float64(exp32(x))-want)/want)
	}
	if worst > 0x1p-22 {
		t.Errorf("relative error %g, want at most 2^-22", worst)
	}
	t.Logf("largest relative error 2^%.1f", math.Log2(worst))
	for _, c := range []struct{ x, want float32 }{{0, 1}, {float32(math.Copysign(0, -1)), 1}, {-1000, exp32(-87)}, {1000, exp32(88)}, {float32(math.Inf(-1)), exp32(-87)}} {
		if got := exp32(c.x); got != c.want {
			t.Errorf("exp32(%v) = %v, want %v", c.x, got, c.want)
		}
	}
}

func TestNaturalLog(t *testing.T) {
	for i := range 10_000 {
		x := math.Exp(float64(i)/50 - 100)
		if got, want := naturalLog(x), math.Log(x); math.Abs(got-want) > 1e-15*max(1, math.Abs(want)) {
			t.Fatalf("naturalLog(%v) = %v, want %v", x, got, want)
		}
	}
	if naturalLog(1) != 0 {
		t.Errorf("ln 1 = %v", naturalLog(1))
	}
}

// TestHalf goes through every binary16 number, and the middle and the neighbours of every pair.
func TestHalf(t *testing.T) {
	for h := range uint16(0x7c00) {
		f, next := halfToFloat(h), halfToFloat(h+1)
		if h == 0x7bff {
			next = 65536
		}
		if h > 0 && !(f > halfToFloat(h-1)) {
			t.Fatalf("half %#x = %v is not above the one before", h, f)
		}
		mid := (f + next) / 2
		even := h + h&1
		for _, c := range []struct {
			f    float32
			want uint16
		}{{f, h}, {mid, even}, {math.Nextafter32(mid, 0), h}, {math.Nextafter32(mid, next), h + 1}} {
			if got := floatToHalf(c.f); got != c.want {
				t.Fatalf("floatToHalf(%x) = %#x, want %#x", c.f, got, c.want)
			}
			if got := floatToHalf(-c.f); got != c.want|0x8000 {
				t.Fatalf("floatToHalf(%x) = %#x, want %#x", -c.f, got, c.want|0x8000)
			}
		}
	}
	for f, want := range map[float32]uint16{1: 0x3c00, 65504: 0x7bff, 65520: 0x7c00, 0x1p-24: 1, 0x1p-25: 0, 1e30: 0x7c00} {
		if got := floatToHalf(f); got != want {
			t.Errorf("floatToHalf(%v) = %#x, want %#x", f, got, want)
		}
	}
	if n := floatToHalf(float32(math.NaN())); n&0x7c00 != 0x7c00 || n&0x3ff == 0 {
		t.Errorf("NaN became %#x", n)
	}
}

// TestDequantize compares with what gguf-py reads in blocks of random bytes.
func TestDequantize(t *testing.T) {
	file, err := os.ReadFile("testdata/blocks.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct{ Type, Block, Values string }
	if err := json.Unmarshal(file, &cases); err != nil {
		t.Fatal(err)
	}
	tested := map[device.Type]bool{}
	for _, c := range cases {
		typ := typeNamed(t, c.Type)
		tested[typ] = true
		block, want := fromHex(t, c.Block), make([]float32, typ.BlockLen())
		dequantize(device.F32, fromHex(t, c.Values), want)
		got := make([]float32, typ.BlockLen())
		dequantize(typ, block, got)
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("%s: column %d is %v, want %v", typ, i, got[i], want[i])
			}
		}
	}
	for typ := device.Q4_0; typ.Valid(); typ++ {
		if !tested[typ] {
			t.Errorf("no case for %s", typ)
		}
	}
}

func typeNamed(t *testing.T, name string) device.Type {
	for typ := device.F32; typ.Valid(); typ++ {
		if typ.String() == name {
			return typ
		}
	}
	t.Fatalf("no type %s", name)
	return 0
}

func fromHex(t *testing.T, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestQuantizeRow(t *testing.T) {
	x := make([]float32, 96)
	x[0], x[1], x[2], x[3] = 127, -126.5, 1.5, 2.5 // ties go to even
	x[32] = 1e-31                                  // too small to scale
	x[64], x[65] = -254, 3
	q, s := make([]int8, 96), make([]float32, 3)
	q[40] = 9 // stale
	quantizeRow(q, s, x)
	if q[0] != 127 || q[1] != -126 || q[2] != 2 || q[3] != 2 || s[0] != 1 {
		t.Errorf("block 0: %v scale %v", q[:4], s[0])
	}
	if q[32] != 0 || q[40] != 0 || s[1] != 0 {
		t.Errorf("block 1: %v scale %v", q[32:64], s[1])
	}
	if q[64] != -127 || q[65] != 2 || s[2] != 2 {
		t.Errorf("block 2: %v scale %v", q[64:66], s[2])
	}
}

func TestRMSNormAndSwiGLUAndRoPE(t *testing.T) {
	x := []float32{3, 4, 0, 0, 3, 4, 0, 0, 3, 4, 0, 0, 3, 4, 0, 0, 3, 4, 0, 0}
	w := make([]float32, len(x))
	for i := range w {
		w[i] = float32(i)
	}
	got := make([]float32, len(x))
	rmsNorm(got, x, w, 0) // mean square 125/20
	for i := range got {
		if want := float64(x[i]) / 2.5 * float64(i); math.Abs(float64(got[i])-want) > 1e-6*max(1, want) {
			t.Errorf("norm column %d: %v, want %v", i, got[i], want)
		}
	}
	g := make([]float32, 2)
	swiGLU(g, []float32{0, 2, 5, 3})
	if g[0] != 0 || math.Abs(float64(g[1])-6/(1+math.Exp(-2))) > 1e-6 {
		t.Errorf("swiGLU: %v", g)
	}
	r := []float32{1, 2, 3, 4}
	rope(r, []float32{0, 1, 1, 0}, false) // a quarter turn, and none
	if r[0] != -2 || r[1] != 1 || r[2] != 3 || r[3] != 4 {
		t.Errorf("rope of neighbours: %v", r)
	}
	r = []float32{1, 2, 3, 4}
	rope(r, []float32{0, 1, 1, 0}, true)
	if r[0] != -3 || r[2] != 1 || r[1] != 2 || r[3] != 4 {
		t.Errorf("rope of halves: %v", r)
	}
}

// TestPhilox uses the known answers that its authors publish with Random123.
func TestPhilox(t *testing.T) {
	for _, c := range []struct {
		counter, want [4]uint32
		key           [2]uint32
	}{
		{counter: [4]uint32{}, want: [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{counter: [4]uint32{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, key: [2]uint32{0xffffffff, 0xffffffff},
			want: [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{counter: [4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, key: [2]uint32{0xa4093822, 0x299f31d0},
			want: [4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	} {
		if got := philox(c.counter, c.key); got != c.want {
			t.Errorf("philox(%x, %x) = %x, want %x", c.counter, c.key, got, c.want)
		}
	}
	if u := uniform(1, 0, 2); u < 0 || u >= 1 || u == uniform(2, 0, 2) || u == uniform(1, 0, 3) || u == uniform(1, 1, 2) || u != uniform(1, 0, 2) {
		t.Errorf("uniform(1, 0, 2) = %v", u)
	}
}
