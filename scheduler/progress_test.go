package scheduler

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// cpuTime is what the process has used, on all cores.
func cpuTime(t testing.TB) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkCheckpoints is the cost of progress on real files: 1,024 running requests on 16 workers,
// each told of once with ten new tokens. At the default interval this is what a tenth of a second
// brings at 100 tokens a second a request.
func BenchmarkCheckpoints(b *testing.B) {
	const workers, each, tokens = 16, 64, 10
	s := start(b, Settings{DataDir: b.TempDir()})
	var all []*fakeWorker
	for _, id := range ids("w", workers) {
		w := newWorker(b, id)
		w.info.MaxSequences, w.info.MaxBatchTokens, w.info.ContextLength, w.info.TotalBlocks = each, 1<<20, 1<<30, 1<<26
		w.join(s)
		b.Cleanup(w.leave)
		all = append(all, w)
	}
	until(b, "the workers are in session", func() bool { return s.Stats().Workers == workers })
	for _, id := range ids("request-", workers*each) {
		r := request(id)
		r.Sampling.MaxTokens = 0
		mustSubmit(b, s, r)
	}
	running := func() (n int) {
		for _, w := range all {
			n += w.count()
		}
		return n
	}
	until(b, "all run", func() bool { return running() == workers*each })
	before, _ := s.ChainHash()
	cpu := cpuTime(b)
	first := int32(0)
	for b.Loop() {
		for _, w := range all {
			p := &pb.Progress{}
			w.mu.Lock()
			for id := range w.running {
				p.Requests = append(p.Requests, &pb.RequestProgress{
					RequestId: id, Term: w.fences[id][0], Index: w.fences[id][1],
					Choices: []*pb.ChoiceProgress{{First: first, TokenIds: []int32{1, 22, 333, 4444, 55555, 6, 77, 888, 9999, 100000}}},
				})
			}
			w.mu.Unlock()
			w.say(&pb.WorkRequest{Message: &pb.WorkRequest_Progress{Progress: p}})
		}
		first += tokens
		last := fmt.Sprint("request-", workers*each-1)
		until(b, "the log has it", func() bool {
			for r := range s.store.View().Live() {
				if len(r.Outputs) == 0 || len(r.Outputs[0].GetTokenIds()) < int(first) {
					return false
				}
			}
			return s.store.View().Request(last) != nil
		})
	}
	after, _ := s.ChainHash()
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N)/(workers*each), "cpu-µs/request")
	b.ReportMetric(float64(after-before)/float64(b.N), "entries/checkpoint")
}

// TestCheckpointsAreBounded: 10,000 streams whose output grows ten times a second fill no more of the log than
// it is allowed, each has its turn, and a log that has little to do gets every one at once.
func TestCheckpointsAreBounded(t *testing.T) {
	const seconds = 3
	for _, streams := range []int{500, 10_000} {
		l := &leader{}
		now := time.Unix(0, 0)
		all := make([]*live, streams)
		for n := range all {
			all[n] = &live{request: request(fmt.Sprint("r", n)), phase: phaseAssigned, outputs: make([]output, 1)}
		}
		longest, sum, bytes := time.Duration(0), 0, 0
		last := make(map[string]time.Time, streams)
		for _, r := range all {
			last[r.request.GetId()] = now
		}
		for tick := range seconds * int(time.Second/housekeeping) {
			if tick%2 == 0 {
				for _, r := range all {
					r.outputs[0].tokens = append(r.outputs[0].tokens, 1, 2, 3)
					if !r.news {
						r.news = true
						l.progressed = append(l.progressed, r)
					}
				}
			}
			for more := true; more; {
				e := &entry{pb: &pb.Entry{}}
				more = l.composeCheckpoints(e, now)
				if e.bytes > settleBytes {
					t.Fatalf("%d bytes in an entry", e.bytes)
				}
				bytes += proto.Size(e.pb)
				for _, c := range e.pb.GetCommands() {
					id := c.GetProgress().GetRequestId()
					longest = max(longest, now.Sub(last[id]))
					last[id] = now
					sum++
				}
			}
			now = now.Add(housekeeping)
		}
		for _, at := range last {
			longest = max(longest, now.Sub(at))
		}
		t.Logf("%d streams: %d checkpoints, %d bytes a second, the longest %v apart", streams, sum/seconds, bytes/seconds, longest)
		wanted := streams * seconds * 10
		if most := checkpointsPerSecond*seconds + int(checkpointsPerSecond*checkpointBurst.Seconds()); sum > most {
			t.Errorf("%d streams: %d checkpoints in %d s; %d at most", streams, sum, seconds, most)
		}
		if wanted < checkpointsPerSecond && sum < wanted {
			t.Errorf("%d streams: %d checkpoints in %d s; none of %d need wait", streams, sum, seconds, wanted)
		}
		if limit := max(2*100*time.Millisecond, 2*time.Second*time.Duration(streams)/checkpointsPerSecond); longest > limit {
			t.Errorf("%d streams: one waited %v for a checkpoint; %v at most", streams, longest, limit)
		}
	}
}
