package cpu

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/quire-serve/quire/device"
)

// part is rows [from, to) of one sequence of a scenario.
type part struct{ seq, from, to int }

// scenario runs whole sequences through a runner and keeps the logits of every position.
type scenario struct {
	t      testing.TB
	runner device.Runner
	layout device.KVLayout
	tokens [][]int32
	tables [2][][]int32      // by group of pages, by sequence
	logits [][][]float32     // by sequence, by position
	copies []device.PageCopy // before the next step
	window int               // pages behind it are taken out of the tables of the last group; 0 for none
}

// newScenario gives each sequence pages drawn by rng from a cache full of NaNs.
func newScenario(t testing.TB, d *Device, p *device.Program, l device.KVLayout, limits device.Limits, tokens [][]int32, rng *rand.Rand) *scenario {
	kv, err := d.NewPages(l)
	if err != nil {
		t.Fatal(err)
	}
	for mem, i := kv.(*pages).mem, 0; i < len(mem); i++ {
		mem[i] = 0xff
	}
	r, err := d.Compile(p, kv, limits)
	if err != nil {
		t.Fatal(err)
	}
	s := &scenario{t: t, runner: r, layout: l, tokens: tokens, logits: make([][][]float32, len(tokens))}
	for g := range l.Groups() {
		free := rng.Perm(l.Group(g).Pages)
		for _, seq := range tokens {
			var table []int32
			for range (len(seq) + l.BlockTokens - 1) / l.BlockTokens {
				table = append(table, int32(free[0]))
				free = free[1:]
			}
			s.tables[g] = append(s.tables[g], table)
		}
	}
	for i, seq := range tokens {
		s.logits[i] = make([][]float32, len(seq))
	}
	return s
}

// close frees what newScenario made.
func (s *scenario) close() {
	if err := s.runner.Close(); err != nil {
		s.t.Fatal(err)
	}
	if err := s.runner.(*runner).pages.Close(); err != nil {
		s.t.Fatal(err)
	}
}

// step runs parts in one batch, with a sample for every row.
func (s *scenario) step(parts ...part) {
	var b device.Batch
	b.WantLogits = true
	b.Copies, s.copies = s.copies, nil
	for _, p := range parts {
		seq := device.Seq{Row: int32(len(b.Tokens)), Rows: int32(p.to - p.from), Context: int32(p.to)}
		at := len(b.Tables)
		seq.Table = int32(at)
		b.Tables = append(b.Tables, s.tables[0][p.seq]...)
		if s.layout.Groups() == 2 {
			at = len(b.Tables)
			seq.WindowTable = int32(at)
			b.Tables = append(b.Tables, s.tables[1][p.seq]...)
		}
		b.Seqs = append(b.Seqs, seq)
		if s.window > 0 {
			for i := range max(0, p.from-s.window+1) / s.layout.BlockTokens {
				b.Tables[at+i] = -1
			}
		}
		for pos := p.from; pos < p.to; pos++ {
			b.Samples = append(b.Samples, device.Sample{Row: int32(len(b.Tokens)), Score: -1, Mask: -1, Logprobs: -1})
			b.Tokens, b.Positions = append(b.Tokens, s.tokens[p.seq][pos]), append(b.Positions, int32(pos))
		}
	}
	if err := s.runner.Submit(&b); err != nil {
		s.t.Fatal(err)
	}
	var res device.Result
	if err := s.runner.Wait(&res); err != nil {
		s.t.Fatal(err)
	}
	vocab := len(res.Logits) / len(b.Samples)
	for _, p := range parts {
		for pos := p.from; pos < p.to; pos++ {
			s.logits[p.seq][pos] = append([]float32(nil), res.Logits[:vocab]...)
			res.Logits = res.Logits[vocab:]
		}
	}
}

// whole runs each sequence alone, in one piece.
func (s *scenario) whole() {
	for i, seq := range s.tokens {
		s.step(part{i, 0, len(seq)})
	}
}

// shuffled runs all sequences together in chunks and batches drawn by rng.
func (s *scenario) shuffled(rng *rand.Rand, maxRows, maxSeqs int) {
	done := make([]int, len(s.tokens))
	for {
		var parts []part
		rows := 0
		for _, i := range rng.Perm(len(s.tokens)) {
			left := len(s.tokens[i]) - done[i]
			n := min(left, maxRows-rows, 1+rng.IntN(maxRows))
			if rng.IntN(3) == 0 {
				n = min(n, 1)
			}
			if n == 0 || len(parts) == maxSeqs {
				continue
			}
			parts = append(parts, part{i, done[i], done[i] + n})
			done[i] += n
			rows += n
		}
		if rows == 0 {
			return
		}
		s.step(parts...)
	}
}

// sameBits fails unless a and b are the same numbers bit for bit, and numbers at all.
func sameBits(t interface{ Fatalf(string, ...any) }, what string, a, b [][][]float32) {
	for i := range a {
		for p := range a[i] {
			for c := range a[i][p] {
				x, y := a[i][p][c], b[i][p][c]
				if math.Float32bits(x) != math.Float32bits(y) || x != x {
					t.Fatalf("%s: sequence %d position %d logit %d: %v (%x) and %v (%x)", what, i, p, c, x, math.Float32bits(x), y, math.Float32bits(y))
				}
			}
		}
	}
}

func openPathFor(t testing.TB, opts Options) *Device {
	d, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func randomTokens(rng *rand.Rand, n, vocab int) []int32 {
	s := make([]int32, n)
	for i := range s {
		s[i] = int32(rng.IntN(vocab))
	}
	return s
}

// relativeError is the mean distance of got from want, over the mean size of want.
func relativeError(got [][]float32, want [][]float64) float64 {
	var off, size float64
	for p := range want {
		for c := range want[p] {
			off += math.Abs(float64(got[p][c]) - want[p][c])
			size += math.Abs(want[p][c])
		}
	}
	return off / size
}
