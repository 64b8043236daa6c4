package cpu

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/quire-serve/quire/device"
)

// smallModel is a float model with its device, for tests that do not care for numbers.
func smallModel(t testing.TB, opts Options) (*Device, *testModel, *device.Program) {
	m := newTestModel(11, llama(testModel{hidden: 32, ffn: 32}), func() device.Type { return device.Q8_0 })
	d := openPathFor(t, opts)
	return d, m, m.program(t, d)
}

// decode is a batch that continues sequences by one token each, with a greedy sample for each.
func decode(tokens []int32, pos int, tables ...[]int32) *device.Batch {
	b := &device.Batch{}
	for i, t := range tokens {
		b.Seqs = append(b.Seqs, device.Seq{Row: int32(i), Rows: 1, Table: int32(len(b.Tables)), Context: int32(pos + 1)})
		b.Tables = append(b.Tables, tables[i]...)
		b.Tokens, b.Positions = append(b.Tokens, t), append(b.Positions, int32(pos))
		s := plain(0)
		s.Row = int32(i)
		b.Samples = append(b.Samples, s)
	}
	return b
}

// TestTokenReferences: steps planned ahead, whose inputs are tokens not yet drawn, give the same
// tokens as steps that were given them; on every path.
func TestTokenReferences(t *testing.T) {
	const steps = 40
	for _, path := range Paths() {
		d, m, p := smallModel(t, Options{Path: path, Threads: 2})
		tables := [][]int32{{0, 1, 2}, {5, 4, 3}}
		var runs [2][]int32
		for ahead := range 2 {
			kv, err := d.NewPages(m.kv(6, 16, device.F16))
			if err != nil {
				t.Fatal(err)
			}
			r, err := d.Compile(p, kv, device.Limits{Rows: 2, Sequences: 2, Samples: 2, Depth: 3})
			if err != nil {
				t.Fatal(err)
			}
			var res device.Result
			wait := func() {
				if err := r.Wait(&res); err != nil {
					t.Fatal(err)
				}
				runs[ahead] = append(runs[ahead], res.Tokens...)
			}
			inputs := []int32{3, 4}
			for i := range steps {
				b := decode(inputs, i, tables...)
				if i%2 == 1 { // the sequences change places, and the references cross
					b = decode([]int32{inputs[1], inputs[0]}, i, tables[1], tables[0])
				}
				if err := r.Submit(b); err != nil {
					t.Fatal(err)
				}
				clear(b.Tokens) // the batch may be reused
				clear(b.Tables)
				if ahead == 1 {
					inputs = []int32{^0, ^1}
					if i%2 == 1 {
						inputs = []int32{^1, ^0}
					}
					if i >= 2 {
						wait()
					}
					continue
				}
				wait()
				inputs = slices.Clone(res.Tokens)
				if i%2 == 1 {
					inputs[0], inputs[1] = inputs[1], inputs[0]
				}
			}
			for len(runs[ahead]) < 2*steps {
				wait()
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if err := kv.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(runs[0], runs[1]) {
			t.Errorf("%s: one at a time %v, ahead %v", path, runs[0], runs[1])
		}
		distinct := map[int32]bool{}
		for _, v := range runs[0] {
			distinct[v] = true
		}
		if len(distinct) < 3 {
			t.Errorf("%s: the tokens hardly differ, so the test shows little: %v", path, runs[0])
		}
		d.Close()
	}
}

// TestPageCopies: a copy happens before the step, in order, and a copied prefix gives the same
// logits as its original.
func TestPageCopies(t *testing.T) {
	for _, path := range Paths() {
		d, m, p := smallModel(t, Options{Path: path, Threads: 2})
		rng := rand.New(rand.NewPCG(1, 7))
		seq := randomTokens(rng, 30, m.vocab)
		s := newScenario(t, d, p, m.kv(8, 16, device.F32), device.Limits{Rows: 30, Sequences: 1, Samples: 30, Depth: 1}, [][]int32{seq}, rng)
		s.whole()
		from := s.tables[0][0]
		var spare []int32
		for i := range int32(8) {
			if !slices.Contains(from, i) {
				spare = append(spare, i)
			}
		}
		b := decode(seq[29:], 29, spare[:2])
		b.WantLogits = true
		b.Copies = []device.PageCopy{{From: from[0], To: spare[0]}, {From: from[1], To: spare[2]}, {From: spare[2], To: spare[1]}}
		if err := s.runner.Submit(b); err != nil {
			t.Fatal(err)
		}
		var res device.Result
		if err := s.runner.Wait(&res); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(res.Logits, s.logits[0][29]) {
			t.Errorf("%s: logits over copied pages differ", path)
		}
		s.close()
		d.Close()
	}
}

// TestPagesMove: a page read on one path and written on another means the same there.
func TestPagesMove(t *testing.T) {
	var reference [][]byte
	for _, path := range slices.Backward(Paths()) {
		d, m, p := smallModel(t, Options{Path: path, Threads: 2})
		l := m.kv(4, 32, device.F16)
		kv, err := d.NewPages(l)
		if err != nil {
			t.Fatal(err)
		}
		r, err := d.Compile(p, kv, device.Limits{Rows: 40, Sequences: 1, Samples: 1, Depth: 1})
		if err != nil {
			t.Fatal(err)
		}
		b := &device.Batch{Tokens: randomTokens(rand.New(rand.NewPCG(1, 1)), 40, m.vocab), Seqs: []device.Seq{{Rows: 40, Context: 40}}, Tables: []int32{1, 2}}
		for i := range b.Tokens {
			b.Positions = append(b.Positions, int32(i))
		}
		if err := r.Submit(b); err != nil {
			t.Fatal(err)
		}
		var res device.Result
		if err := r.Wait(&res); err != nil {
			t.Fatal(err)
		}
		for i, page := range []int32{1, 2} {
			mem := make([]byte, l.PageBytes())
			if err := kv.Read(page, mem); err != nil {
				t.Fatal(err)
			}
			if path == "go" {
				reference = append(reference, mem)
			} else if !bytes.Equal(mem, reference[i]) {
				t.Errorf("%s: page %d differs from the reference", path, page)
			}
		}
		if err := kv.Write(3, reference[0]); err != nil {
			t.Fatal(err)
		}
		back := make([]byte, l.PageBytes())
		if err := kv.Read(3, back); err != nil || !bytes.Equal(back, reference[0]) {
			t.Errorf("%s: a written page reads differently: %v", path, err)
		}
		if kv.Read(4, back) == nil || kv.Read(-1, back) == nil || kv.Read(0, back[1:]) == nil || kv.Write(0, back[1:]) == nil {
			t.Errorf("%s: pages out of range or of the wrong size were accepted", path)
		}
		r.Close()
		kv.Close()
		d.Close()
	}
	if reference == nil {
		t.Error("no reference")
	}
}

func TestDepthAndClose(t *testing.T) { synctest.Test(t, testDepthAndClose) }

func testDepthAndClose(t *testing.T) {
	d, m, p := smallModel(t, Options{Path: "go"})
	defer d.Close()
	kv, err := d.NewPages(m.kv(2, 16, device.F32))
	if err != nil {
		t.Fatal(err)
	}
	r, err := d.Compile(p, kv, device.Limits{Rows: 1, Sequences: 1, Samples: 1, Depth: 2})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if err := r.Submit(decode([]int32{1}, i, []int32{0})); err != nil {
			t.Fatal(err)
		}
	}
	third := make(chan error)
	go func() { third <- r.Submit(decode([]int32{1}, 2, []int32{0})) }()
	synctest.Wait() // all goroutines are blocked
	select {
	case err := <-third:
		t.Fatalf("a third step was taken with two in flight: %v", err)
	default:
	}
	var res device.Result
	if err := r.Wait(&res); err != nil {
		t.Fatal(err)
	}
	if err := <-third; err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 2 { // what was submitted can still be had
		if err := r.Wait(&res); err != nil {
			t.Fatalf("result %d after Close: %v", i, err)
		}
	}
	if err := r.Wait(&res); !errors.Is(err, device.ErrClosed) {
		t.Errorf("Wait after the last: %v, want ErrClosed", err)
	}
	if err := r.Submit(decode([]int32{1}, 2, []int32{0})); !errors.Is(err, device.ErrClosed) {
		t.Errorf("Submit after Close: %v, want ErrClosed", err)
	}
	if err := errors.Join(r.Close(), kv.Close(), kv.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
}

// TestBadBatches: each is refused with its reason, and the runner goes on.
func TestBadBatches(t *testing.T) {
	d, m, p := smallModel(t, Options{Path: "go"})
	defer d.Close()
	kv, err := d.NewPages(m.kv(3, 16, device.F32))
	if err != nil {
		t.Fatal(err)
	}
	r, err := d.Compile(p, kv, device.Limits{Rows: 4, Sequences: 2, Samples: 2, Depth: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for want, spoil := range map[string]func(*device.Batch){
		"0 rows, want 1 to 4":             func(b *device.Batch) { *b = device.Batch{} },
		"positions":                       func(b *device.Batch) { b.Positions = b.Positions[1:] },
		"3 sequences, at most 2":          func(b *device.Batch) { b.Seqs = append(b.Seqs, b.Seqs...)[:3] },
		"3 samples, at most 2":            func(b *device.Batch) { b.Samples = append(b.Samples, b.Samples...)[:3] },
		"refers to sample 0 of 0":         func(b *device.Batch) { b.Tokens[1] = ^0 },
		"token 70 of a vocabulary of 70":  func(b *device.Batch) { b.Tokens[1] = 70 },
		"start at row 1":                  func(b *device.Batch) { b.Seqs[1].Row = 0 },
		"cover 1 of 2":                    func(b *device.Batch) { b.Seqs = b.Seqs[:1] },
		"has position 5, want 0":          func(b *device.Batch) { b.Positions[0] = 5 },
		"context of 161, at most 160":     func(b *device.Batch) { b.Seqs[0].Context = 161 },
		"needs 1 pages from entry 7":      func(b *device.Batch) { b.Seqs[0].Table = 7 },
		"page 3 of 3":                     func(b *device.Batch) { b.Tables[1] = 3 },
		"page -1 of 3":                    func(b *device.Batch) { b.Tables[1] = -1 },
		"copy 0 from page 0 to 3":         func(b *device.Batch) { b.Copies = []device.PageCopy{{From: 0, To: 3}} },
		"sample 1 of row 0 after row 1":   func(b *device.Batch) { b.Samples[0].Row, b.Samples[1].Row = 1, 0 },
		"scores token 70":                 func(b *device.Batch) { b.Samples[0].Score = 70 },
		"temperature -1":                  func(b *device.Batch) { b.Samples[0].Temperature = -1 },
		"history 0, 0, 1 of 0":            func(b *device.Batch) { b.Samples[0].HistoryEnd = 1 },
		"token 99 in the history":         func(b *device.Batch) { badHistory(b) },
		"biases 0 to 1 of 0":              func(b *device.Batch) { b.Samples[0].BiasEnd = 1 },
		"mask 0 of 0 words":               func(b *device.Batch) { b.Samples[0].Mask = 0 },
		"wants 71 log-probabilities of 7": func(b *device.Batch) { b.Samples[0].Logprobs = 71 },
	} {
		b := decode([]int32{1, 2}, 0, []int32{0}, []int32{1})
		spoil(b)
		if err := r.Submit(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	if err := r.Submit(decode([]int32{1, 2}, 0, []int32{0}, []int32{1})); err != nil {
		t.Errorf("a good batch after bad ones: %v", err)
	}
}

func badHistory(b *device.Batch) {
	b.History = []int32{99}
	b.Samples[0].HistoryEnd, b.Samples[0].FrequencyPenalty = 1, 1
}

func TestOpenErrors(t *testing.T) {
	_, err := Open(Options{Path: "abacus"})
	if err == nil || !strings.Contains(err.Error(), `"abacus"`) || !strings.Contains(err.Error(), strings.Join(Paths(), ", ")) {
		t.Errorf("unknown path: %v, want the choices named", err)
	}
	if _, err := Open(Options{Threads: -1}); err == nil || !strings.Contains(err.Error(), "threads") {
		t.Errorf("negative threads: %v", err)
	}
	if _, err := Open(Options{MemoryBytes: -1}); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("negative memory: %v", err)
	}
	d := openPathFor(t, Options{})
	if i := d.Info(); i.Name != "cpu" || i.Path != Paths()[0] || i.Threads < 1 || i.MemoryBytes < 1 || i.Description == "" {
		t.Errorf("info %+v", i)
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	if _, err := d.Load("w", device.Tensor{Type: device.F32, Rows: 1, Cols: 1, Data: make([]byte, 4)}); !errors.Is(err, device.ErrClosed) {
		t.Errorf("load after Close: %v", err)
	}
}

func TestLoadErrors(t *testing.T) {
	d := openPathFor(t, Options{MemoryBytes: 1 << 20})
	defer d.Close()
	tensor := func(typ device.Type, rows, cols, bytes int) device.Tensor {
		return device.Tensor{Type: typ, Rows: rows, Cols: cols, Data: make([]byte, bytes)}
	}
	for _, c := range []struct {
		want  string
		parts []device.Tensor
	}{
		{"no tensors", nil},
		{"type 0", []device.Tensor{tensor(0, 1, 1, 4)}},
		{"blocks of 32", []device.Tensor{tensor(device.Q4_0, 1, 48, 27)}},
		{"beside 32 columns", []device.Tensor{tensor(device.Q4_0, 1, 32, 18), tensor(device.Q4_0, 1, 64, 36)}},
		{"has 17 bytes, want 18", []device.Tensor{tensor(device.Q4_0, 1, 32, 17)}},
		{"0×32", []device.Tensor{tensor(device.F32, 0, 32, 0)}},
	} {
		if _, err := d.Load("w", c.parts...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want one with %q", err, c.want)
		}
	}
	if _, err := d.Load("w", tensor(device.F32, 512, 513, 512*513*4)); !errors.Is(err, device.ErrMemory) {
		t.Errorf("a weight beyond the memory: %v, want ErrMemory", err)
	}
	w, err := d.Load("w", tensor(device.Q8_0, 3, 64, 3*68), tensor(device.Q4_1, 2, 64, 2*40))
	if err != nil || w.Rows() != 5 || w.Cols() != 64 || w.Bytes() < 5*32 {
		t.Errorf("stacked weight %v: %v", w, err)
	}
}

func TestPagesAndCompileErrors(t *testing.T) {
	d, m, p := smallModel(t, Options{Path: "go", MemoryBytes: 4 << 20})
	defer d.Close()
	for want, l := range map[string]device.KVLayout{
		"KV type":           m.kv(2, 16, device.Q8_0),
		"multiple of 16":    m.kv(2, 24, device.F32),
		"must be posit":     m.kv(0, 16, device.F32),
		"out of memory":     m.kv(1<<20, 16, device.F32),
		"at most 4096":      {Pages: 1, BlockTokens: 16, Layers: 1 << 13, KVHeads: 1, HeadDim: 1, Type: device.F32},
		"a second group":    {Pages: 1, BlockTokens: 16, Layers: 1, WindowPages: 1, KVHeads: 1, HeadDim: 1, Type: device.F32},
		"out of memory: : ": {Pages: 1, BlockTokens: 16, Layers: 1, WindowPages: 1 << 20, WindowLayers: 1 << 12, KVHeads: 1, HeadDim: 64, Type: device.F32},
		"out of memory: ":   {Pages: 1 << 40, BlockTokens: 16, Layers: 1 << 12, KVHeads: 1 << 12, HeadDim: 1 << 12, Type: device.F32},
	} {
		if _, err := d.NewPages(l); err == nil || !strings.Contains(err.Error(), strings.TrimRight(want, ": ")) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	kv, err := d.NewPages(device.KVLayout{Pages: 1, BlockTokens: 16, Layers: 1, KVHeads: 2, HeadDim: 16, Type: device.F32})
	if err != nil {
		t.Fatal(err)
	}
	limits := device.Limits{Rows: 1, Sequences: 1, Samples: 1, Depth: 1}
	if _, err := d.Compile(p, kv, limits); err == nil || !strings.Contains(err.Error(), "does not fit pages of 1 layers") {
		t.Errorf("two layers over pages of one: %v", err)
	}
	groups := m.kv(1, 16, device.F32)
	groups.Layers, groups.WindowLayers, groups.WindowPages = 1, 1, 1
	if kv, err = d.NewPages(groups); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Compile(p, kv, limits); err == nil || !strings.Contains(err.Error(), "0 layers of 2 have a window, the second group of pages has 1") {
		t.Errorf("layers without windows over a group for windows: %v", err)
	}
	good, err := d.NewPages(m.kv(1, 16, device.F32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Compile(p, good, device.Limits{}); err == nil || !strings.Contains(err.Error(), "limits") {
		t.Errorf("empty limits: %v", err)
	}
	if _, err := d.Compile(p, good, device.Limits{Rows: 1 << 20, Sequences: 1, Samples: 1, Depth: 1}); !errors.Is(err, device.ErrMemory) {
		t.Errorf("buffers beyond the memory: %v, want ErrMemory", err)
	}
	other, _, _ := smallModel(t, Options{Path: "go"})
	defer other.Close()
	if _, err := other.Compile(p, good, limits); err == nil {
		t.Error("pages of another device were accepted")
	}
	foreign, err := other.NewPages(m.kv(1, 16, device.F32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Compile(p, foreign, limits); err == nil || !strings.Contains(err.Error(), "another device") {
		t.Errorf("weights of another device: %v", err)
	}
	used := d.used
	r, err := d.Compile(p, good, limits)
	if err != nil {
		t.Fatal(err)
	}
	if d.used <= used {
		t.Error("a runner's buffers were not accounted for")
	}
	first := d.used
	r.Close()
	again, err := d.Compile(p, good, limits)
	if err != nil {
		t.Fatal(err)
	}
	if d.used != first {
		t.Errorf("%d bytes in use after compiling anew, want %d", d.used, first)
	}
	again.Close()
	good.Close()
	if _, err := d.Compile(p, good, limits); err == nil {
		t.Error("closed pages were accepted")
	}
}

// TestMatricesAreHeldOnce: a matrix of F32 is held as it is until a program multiplies by it, and packed
// from then on, never both; one that is a table to one program stays.
func TestMatricesAreHeldOnce(t *testing.T) {
	for _, path := range Paths() {
		d := openPathFor(t, Options{Path: path})
		m := newTestModel(3, llama(testModel{hidden: 64, ffn: 64}), func() device.Type { return device.F32 })
		p := m.program(t, d)
		limits := device.Limits{Rows: 4, Sequences: 1, Samples: 1, Depth: 1}
		for range 2 { // a second program finds all that the first has packed
			pages, err := d.NewPages(m.kv(1, 16, device.F32))
			if err != nil {
				t.Fatal(err)
			}
			r, err := d.Compile(p, pages, limits)
			if err != nil {
				t.Fatal(err)
			}
			var held, matrices int64
			seen := map[*weight]bool{}
			for _, op := range p.Ops {
				for _, dw := range []device.Weight{op.W, op.Bias, op.Table} {
					w, _ := dw.(*weight)
					if w == nil || seen[w] {
						continue
					}
					seen[w] = true
					held += w.Bytes()
					if w.rows > 1 {
						matrices++
						if (w.vector == nil) == (w.packed == nil) {
							t.Errorf("%s: %s is held as rows and packed: %t, %t", path, w.name, w.vector != nil, w.packed != nil)
						}
					}
				}
			}
			if matrices < 3 {
				t.Fatalf("%d matrices in the model", matrices)
			}
			if rest := d.used - held - pages.Layout().Bytes() - r.(*runner).bytes; rest != 0 {
				t.Errorf("%s: %d bytes are accounted for beyond weights, pages and buffers", path, rest)
			}
			r.Close()
			pages.Close()
		}
		d.Close()
	}
}
