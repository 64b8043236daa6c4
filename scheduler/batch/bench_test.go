package batch

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/scheduler/prefix"
)

// conversation names the blocks of a prompt of 8k tokens: the first 128 of one of 16 system prompts,
// the rest of its own.
func conversation(n int) []kvcache.Hash {
	out := make([]kvcache.Hash, 512)
	for b := range out {
		id := uint64(n)<<16 | uint64(b)
		if b < 128 {
			id = uint64(1)<<63 | uint64(n%16)<<16 | uint64(b)
		}
		binary.LittleEndian.PutUint64(out[b][:], draw(id))
		binary.LittleEndian.PutUint64(out[b][8:], draw(^id))
	}
	return out
}

// cpuTime is what the process has used: shared machines take the processor away in between.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPlaceByPrefix is the leader's load at 1,000 workers when every prompt has 8k tokens and
// prefixes to be found: all workers hold all system prompts, one holds the conversation so far.
func BenchmarkPlaceByPrefix(b *testing.B) {
	for _, hot := range []bool{false, true} {
		b.Run(fmt.Sprintf("workers=1000/system=%v", hot), func(b *testing.B) {
			const workers, conversations = 1000, 4000
			index := prefix.New(prefix.Settings{})
			batcher := New(Settings{Matcher: index})
			var known [][]kvcache.Hash
			for n := range conversations {
				known = append(known, conversation(n))
			}
			sequences := map[string]uint64{}
			for n := range workers {
				number, err := index.Add()
				if err != nil {
					b.Fatal(err)
				}
				w := Worker{
					ID: fmt.Sprintf("w%04d", n), Model: "m", Cache: number, ContextTokens: 1 << 17, BlockTokens: 16,
					TotalBlocks: 1 << 16, MaxSequences: 256, MaxBatchTokens: 8192,
				}
				batcher.Join(w, true, 0)
				for c := n; c < conversations; c += workers {
					index.Stored(number, kvcache.Device, known[c])
				}
				for c := range 16 {
					if hot {
						index.Stored(number, kvcache.Device, known[c][:128])
					}
				}
				sequences[w.ID] = 1
			}
			var took []time.Duration
			used := cpuTime()
			now, number, done := int64(0), uint64(0), 0
			b.ResetTimer()
			for done < b.N {
				now++
				number++
				for range 20 {
					done++
					c := int(draw(uint64(done)) % conversations)
					batcher.Push(Request{
						ID: fmt.Sprint("r", done), Model: "m", Tenant: fmt.Sprint("t", done%100), ArrivalMS: now,
						Tokens: 8200, Bytes: 25_000, Hashes: known[c],
					})
				}
				began := time.Now()
				bound := batcher.Plan(now, number, all)
				took = append(took, time.Since(began))
				for _, a := range bound {
					sequences[a.WorkerID]++
					batcher.Report(a.WorkerID, Load{Sequence: sequences[a.WorkerID], Running: 20, FreeBlocks: 1 << 15, DispatchIndex: number}, now)
				}
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(b.N)/(cpuTime()-used).Seconds(), "admissions/cpu-s")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us/plan")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us/plan")
		})
	}
}
