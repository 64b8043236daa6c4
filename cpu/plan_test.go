package cpu

import (
	"math/rand/v2"
	"testing"

	"github.com/quire-serve/quire/device"
)

// TestPlanOfLlama: five phases a layer, one before and one after.
func TestPlanOfLlama(t *testing.T) {
	d, m, p := smallModel(t, Options{Path: "go"})
	defer d.Close()
	plan, err := compile(p, m.kv(1, 16, device.F32), device.Limits{Rows: 1, Sequences: 1, Samples: 1, Depth: 1})
	if err != nil {
		t.Fatal(err)
	}
	var got []phaseKind
	for _, ph := range plan.phases {
		got = append(got, ph.kind)
	}
	want := []phaseKind{phaseEmbed}
	for range m.layers {
		want = append(want, phaseMatMul, phaseAttention, phaseMatMul, phaseMatMul, phaseMatMul)
	}
	want = append(want, phaseMatMul)
	if len(got) != len(want) {
		t.Fatalf("phases %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("phases %v, want %v", got, want)
		}
	}
	last := plan.phases[len(plan.phases)-1]
	if !last.gather || last.prepare != prepareNorm || last.dst != plan.logits {
		t.Errorf("the head is %+v, want it to gather and norm", last)
	}
}

// TestUnfused: a program whose intermediate results are read again later cannot be fused, and gives
// the same bits as the one that can.
func TestUnfused(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	model := newTestModel(4, llama(testModel{hidden: 64, ffn: 64, bias: true}), func() device.Type { return narrowTypes[rng.IntN(len(narrowTypes))] })
	tokens := [][]int32{randomTokens(rng, 37, model.vocab), randomTokens(rng, 5, model.vocab)}
	limits := device.Limits{Rows: 40, Sequences: 2, Samples: 40, Depth: 1}
	ref := openPathFor(t, Options{Path: "go", Threads: 1})
	defer ref.Close()
	fused := newScenario(t, ref, model.program(t, ref), model.kv(6, 16, device.F32), limits, tokens, rng)
	defer fused.close()
	fused.whole()
	for _, path := range Paths() {
		d := openPathFor(t, Options{Path: path, Threads: 3})
		p := model.program(t, d)
		apart := unfuse(t, d, p)
		s := newScenario(t, d, apart, model.kv(6, 16, device.F32), limits, tokens, rng)
		kinds := map[phaseKind]bool{}
		for _, ph := range s.runner.(*runner).plan.phases {
			kinds[ph.kind] = true
		}
		for k := phaseEmbed; k <= phaseStoreKV; k++ {
			if !kinds[k] {
				t.Errorf("no phase of kind %d", k)
			}
		}
		s.whole()
		sameBits(t, path, fused.logits, s.logits)
		s.close()
		d.Close()
	}
}

// unfuse adds, after p's own operations, readers of every buffer that fusion would leave out. Their
// results are not used.
func unfuse(t *testing.T, d *Device, p *device.Program) *device.Program {
	apart := *p
	apart.Ops = append([]device.Op(nil), p.Ops...)
	apart.Widths, apart.Sample = append([]int(nil), p.Widths...), append([]bool(nil), p.Sample...)
	for _, op := range p.Ops {
		switch op.Kind {
		case device.KindRMSNorm, device.KindSwiGLU, device.KindGather, device.KindStoreKV:
			read := op.Dst
			if op.Kind == device.KindStoreKV {
				read = op.Src
			}
			w := apart.Widths[read]
			ones := make([]float32, w)
			norm, err := d.Load("ones", device.Tensor{Type: device.F32, Rows: 1, Cols: w, Data: floatBytes(ones)})
			if err != nil {
				t.Fatal(err)
			}
			apart.Widths, apart.Sample = append(apart.Widths, w), append(apart.Sample, apart.Sample[read])
			apart.Ops = append(apart.Ops, device.Op{Kind: device.KindRMSNorm, Dst: device.Buf(len(apart.Widths) - 1), Src: read, W: norm, Eps: 1})
		}
	}
	return &apart
}

// TestLayersShareBuffers: more layers take no more buffers.
func TestLayersShareBuffers(t *testing.T) {
	d := openPathFor(t, Options{Path: "go"})
	defer d.Close()
	var bytes []int64
	for _, layers := range []int{2, 8} {
		shape := llama(testModel{hidden: 32, ffn: 32})
		shape.layers = layers
		m := newTestModel(5, shape, func() device.Type { return device.Q8_0 })
		plan, err := compile(m.program(t, d), m.kv(1, 16, device.F32), device.Limits{Rows: 4, Sequences: 1, Samples: 1, Depth: 1})
		if err != nil {
			t.Fatal(err)
		}
		if len(plan.phases) < 5*layers {
			t.Fatalf("%d phases for %d layers", len(plan.phases), layers)
		}
		bytes = append(bytes, plan.bufferBytes())
	}
	if bytes[0] != bytes[1] || bytes[0] == 0 {
		t.Errorf("buffers of 2 layers take %d bytes, of 8 layers %d", bytes[0], bytes[1])
	}
}
