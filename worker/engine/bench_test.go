//go:build unix

package engine

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/quire-serve/quire/device"
)

// still answers every sample with the same token, at no cost.
type still struct{ samples []int }

func (r *still) Submit(b *device.Batch) error {
	r.samples = append(r.samples, len(b.Samples))
	return nil
}

func (r *still) Wait(out *device.Result) error {
	n := r.samples[0]
	r.samples = append(r.samples[:0], r.samples[1:]...)
	out.Tokens = out.Tokens[:0]
	for range n {
		out.Tokens = append(out.Tokens, 7)
	}
	return nil
}

func (r *still) Close() error { return nil }

// decoding returns a step of a planner in which n sequences of about length tokens decode, with
// prefix caching on and one step in flight. With a window, which some layers have, there are two groups.
func decoding(tb testing.TB, n, length, steps, speculate, window int) (step func()) {
	runner := &still{}
	s := Settings{
		MaxSequences: n, MaxBatchTokens: max(8192, n), Blocks: n*((length+steps)/16+2) + 1024, PrefixCache: true,
		QueueRequests: n + 1, Speculate: speculate, Logger: quiet(),
	}.WithDefaults()
	if window > 0 {
		s.WindowBlocks = s.Blocks
	}
	m := Model{Runner: runner, ContextLength: length + steps + 64, Window: window, Vocab: testVocab, EOS: []int32{0}}
	p, err := newPlanner(s, m)
	if err != nil {
		tb.Fatal(err)
	}
	for i := range n {
		q, err := newRequest(ask(fmt.Sprint(i), prompt(i, length), 0), &m, p.context)
		if err != nil {
			tb.Fatal(err)
		}
		q.number = uint64(i)
		p.add(q)
	}
	var result device.Result
	now := int64(1)
	step = func() {
		planned := p.plan(now)
		if planned {
			_ = runner.Submit(&p.batch)
		}
		if p.inFlight() == 2 || !planned {
			_ = runner.Wait(&result)
			p.accept(&result, now)
		}
		_ = p.stats()
		p.events, p.begun, p.done = p.events[:0], p.begun[:0], p.done[:0]
		now += 1000
	}
	for len(p.batch.Seqs) < n || len(p.batch.Tokens) > n {
		step()
	}
	return step
}

// BenchmarkDecodeStep is a whole step of decodes but the device: plan, batch, result, events.
func BenchmarkDecodeStep(b *testing.B) {
	for _, n := range []int{1, 64, 256, 1024} {
		b.Run(fmt.Sprintf("running=%d", n), func(b *testing.B) {
			const most = 4000
			step := decoding(b, n, 512, most, 0, 0)
			done := 0
			b.ReportAllocs()
			spent := int64(0)
			from := cpuNS()
			for b.Loop() {
				if done++; done > most-100 {
					b.StopTimer()
					spent += cpuNS() - from
					step = decoding(b, n, 512, most, 0, 0)
					done, from = 0, cpuNS()
					b.StartTimer()
				}
				step()
			}
			spent += cpuNS() - from
			b.ReportMetric(float64(spent)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpuNS is the processor time of the whole process, collector included: what a step costs also on a
// machine that has other things to do.
func cpuNS() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// TestDecodeStepAllocatesNothing: planning and booking a step of decodes needs no memory.
func TestDecodeStepAllocatesNothing(t *testing.T) {
	for _, window := range []int{0, 64} {
		step := decoding(t, 256, 520, 2000, 0, window)
		for range 64 {
			step() // buffers reach their size
		}
		if n := testing.AllocsPerRun(400, step); n != 0 {
			t.Errorf("window %d: %v allocations a step", window, n)
		}
	}
}

// TestDraftingAllocatesNothing: nor does one with drafts.
func TestDraftingAllocatesNothing(t *testing.T) {
	step := decoding(t, 64, 1100, 2000, 4, 0)
	for range 64 {
		step()
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations a step", n)
	}
}
