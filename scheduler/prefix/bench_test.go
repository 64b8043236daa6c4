package prefix

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/quire-serve/quire/kvcache"
)

// fleet is a cluster's cache: conversations of 512 blocks (8k tokens of 16), the first 128 of which
// are one of 16 system prompts. Every worker holds every system prompt, and its own conversations.
type fleet struct {
	index   *Index
	workers int
	each    int
	names   []Worker
}

func conversation(worker, n int) []kvcache.Hash {
	out := make([]kvcache.Hash, 512)
	for b := range out {
		id := uint64(worker)<<40 | uint64(n)<<16 | uint64(b)
		if b < 128 {
			id = uint64(1)<<63 | uint64(n%16)<<16 | uint64(b)
		}
		binary.LittleEndian.PutUint64(out[b][:], random(int(id)))
		binary.LittleEndian.PutUint64(out[b][8:], random(int(^id)))
	}
	return out
}

// cpuTime is what the process has used: shared machines take the processor away in between.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func newFleet(b *testing.B, workers, blocks int) fleet {
	f := fleet{New(Settings{Bytes: 1 << 30}), workers, max(1, blocks/workers/384), nil}
	for w := range workers {
		number, err := f.index.Add()
		if err != nil {
			b.Fatal(err)
		}
		f.names = append(f.names, number)
		for n := range 16 {
			f.index.Stored(number, kvcache.Device, conversation(0, n)[:128])
		}
		for n := range f.each {
			f.index.Stored(number, kvcache.Device, conversation(w, n))
		}
	}
	return f
}

// BenchmarkUpdates stores and removes conversations, all updates applied when the call returns: a
// block operation is one block that comes to a worker or goes from it.
func BenchmarkUpdates(b *testing.B) {
	for _, workers := range []int{100, 1000} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			f := newFleet(b, workers, 2_000_000)
			// An eviction removes the tail of an old conversation, a new one takes its place.
			var old, fresh [][]kvcache.Hash
			for n := range 256 {
				old = append(old, conversation(n%workers, n/workers%f.each))
				fresh = append(fresh, conversation(n%workers, f.each+n))
			}
			b.ReportAllocs()
			b.ResetTimer()
			ops, used := 0, cpuTime()
			for n := 0; b.Loop(); n++ {
				at, w := n%256, f.names[n%256%workers]
				out, in := old[at], fresh[at]
				if n/256%2 == 1 {
					out, in = in, out
				}
				f.index.Removed(w, kvcache.Device, out[128:])
				f.index.Stored(w, kvcache.Device, in[128:])
				ops += 2 * 384
			}
			b.ReportMetric(float64(ops)/(cpuTime()-used).Seconds(), "block-ops/cpu-s")
			s := f.index.Stats()
			b.ReportMetric(float64(s.Bytes)/float64(s.Blocks), "bytes/block")
		})
	}
}

// BenchmarkFirstStores fills an empty index, growth included.
func BenchmarkFirstStores(b *testing.B) {
	var all [][]kvcache.Hash
	for n := range 1000 {
		all = append(all, conversation(n, n)[128:])
	}
	ops, used := 0, cpuTime()
	for b.Loop() {
		x := New(Settings{})
		number, _ := x.Add()
		for _, hashes := range all {
			x.Stored(number, kvcache.Device, hashes)
			ops += len(hashes)
		}
	}
	b.ReportMetric(float64(ops)/(cpuTime()-used).Seconds(), "block-ops/cpu-s")
}

// BenchmarkSharedStores brings one prompt to a thousand workers, one after the other.
func BenchmarkSharedStores(b *testing.B) {
	hashes := conversation(0, 0)
	ops, used := 0, cpuTime()
	for b.Loop() {
		x := New(Settings{})
		for range 1000 {
			number, _ := x.Add()
			x.Stored(number, kvcache.Device, hashes)
			ops += len(hashes)
		}
	}
	b.ReportMetric(float64(ops)/(cpuTime()-used).Seconds(), "block-ops/cpu-s")
}

// BenchmarkMatch looks up prompts of 512 blocks: whole ones that one worker holds (and all hold a
// quarter of), ones of which all hold a quarter and nobody more, and unknown ones.
func BenchmarkMatch(b *testing.B) {
	for _, workers := range []int{100, 1000} {
		f := newFleet(b, workers, 2_000_000)
		for _, kind := range []string{"whole", "quarter", "unknown"} {
			b.Run(fmt.Sprintf("%s/workers=%d", kind, workers), func(b *testing.B) {
				var prompts [][]kvcache.Hash
				for n := range 2000 {
					p := conversation(int(random(n)%uint64(workers)), int(random(n+1<<20)%uint64(f.each)))
					switch kind {
					case "quarter":
						p = conversation(n, 1<<20+n)
					case "unknown":
						p = conversation(n, 1<<20+n)[128:]
					}
					prompts = append(prompts, p)
				}
				var dst []Match
				var took []time.Duration
				blocks := 0
				b.ReportAllocs()
				b.ResetTimer()
				for n := 0; b.Loop(); n++ {
					began := time.Now()
					dst = f.index.Match(dst[:0], prompts[n%len(prompts)])
					if len(took) < 1<<20 {
						took = append(took, time.Since(began))
					}
					blocks += len(prompts[n%len(prompts)])
				}
				b.StopTimer()
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
				b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
			})
		}
	}
}
