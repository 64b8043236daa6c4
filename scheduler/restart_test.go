package scheduler

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestRestart closes a node with requests in every state and opens it again on the same files: what
// was admitted runs to its end, what had ended stays ended, and nothing runs twice.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	settings := Settings{DataDir: dir, ReconnectGrace: 200 * time.Millisecond}
	s := start(t, settings)
	w := newWorker(t, "w")
	w.info.MaxSequences = 3
	w.join(s)
	until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
	for _, id := range []string{"ended", "kept", "dropped"} {
		mustSubmit(t, s, request(id))
	}
	until(t, "three run", func() bool { return w.count() == 3 })
	for _, id := range ids("waiting", 5) {
		mustSubmit(t, s, request(id))
	}
	w.mu.Lock()
	w.info.MaxSequences = 100
	w.mu.Unlock()
	w.finish("ended", pb.FinishReason_FINISH_REASON_STOP, "")
	until(t, "one ended", finished(s, "ended"))
	until(t, "another took its place", func() bool { return w.count() == 3 })
	index, hash := s.ChainHash()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	w.stopped.Wait()

	// The worker outlives the node, but loses one request.
	w.mu.Lock()
	delete(w.running, "dropped")
	w.mu.Unlock()

	s = start(t, settings)
	if i, h := s.ChainHash(); i == index && h != hash || i < index {
		t.Errorf("at entry %d the chain hash is %x; it was %x at %d", i, h, hash, index)
	}
	if again, err := submit(s, request("ended")); err != nil || !again.GetDuplicate() || again.GetFinishReason() != pb.FinishReason_FINISH_REASON_STOP {
		t.Errorf("a retry of what had ended: %v, %v", again, err)
	}
	other := request("kept")
	other.Prompt = []int32{8}
	if _, err := submit(s, other); status.Code(err) != codes.AlreadyExists {
		t.Errorf("another body under a known id after the restart: %v", err)
	}
	w.join(s)
	until(t, "all seven run", func() bool { return w.count() == 7 })
	if w.times("kept") != 1 || w.times("dropped") != 2 {
		t.Errorf("kept was dispatched %d times, dropped %d times; want 1 and 2", w.times("kept"), w.times("dropped"))
	}
	for _, id := range append(ids("waiting", 5), "kept", "dropped") {
		w.finish(id, pb.FinishReason_FINISH_REASON_LENGTH, "")
	}
	for _, id := range append(ids("waiting", 5), "kept", "dropped") {
		until(t, id+" ended", finished(s, id))
	}
	w.leave()
}

// TestRestartWithoutTheOldWorker gives its requests to another one after the grace.
func TestRestartWithoutTheOldWorker(t *testing.T) {
	settings := Settings{DataDir: t.TempDir(), ReconnectGrace: 100 * time.Millisecond}
	s := start(t, settings)
	w := newWorker(t, "old")
	w.join(s)
	until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
	mustSubmit(t, s, request("a"))
	if err := s.node.Snapshot(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	w.stopped.Wait()
	s = start(t, settings)
	next := newWorker(t, "new")
	next.hold = time.Millisecond
	next.join(s)
	until(t, "the new worker finished it", finished(s, "a"))
	if next.times("a") != 1 {
		t.Errorf("dispatched %d times", next.times("a"))
	}
	until(t, "the old worker is forgotten", func() bool { return s.store.View().Worker("old") == nil })
	next.leave()
}

// TestKilledProcess kills a node's process while it admits: every admission that it told of is there
// when the files are opened again, and runs to its end.
func TestKilledProcess(t *testing.T) {
	const folder = "QUIRE_TEST_ADMIT_IN"
	if dir := os.Getenv(folder); dir != "" {
		s := start(t, Settings{DataDir: dir})
		w := newWorker(t, "w")
		w.join(s)
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		for n := 0; ; n++ { // Until the parent kills the process.
			mustSubmit(t, s, request(fmt.Sprint("r", n)))
			fmt.Printf("admitted r%d\n", n)
		}
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$", "-test.v")
	child.Env = append(os.Environ(), folder+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var admitted []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		id, found := strings.CutPrefix(lines.Text(), "admitted ")
		if !found {
			continue
		}
		if admitted = append(admitted, id); len(admitted) == 20 {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := child.Wait(); err == nil || len(admitted) < 20 {
		t.Fatalf("the child admitted %d and ended with %v", len(admitted), err)
	}

	s := start(t, Settings{DataDir: dir, ReconnectGrace: 50 * time.Millisecond})
	next := newWorker(t, "next")
	next.hold = time.Millisecond
	next.join(s)
	for _, id := range admitted {
		until(t, id+" ends", finished(s, id))
		if next.times(id) != 1 {
			t.Errorf("%s ran %d times", id, next.times(id))
		}
	}
	next.leave()
}

// BenchmarkAdmissions measures the whole durable path on real files: submit, group commit, dispatch,
// finish, with simulated workers that answer at once.
func BenchmarkAdmissions(b *testing.B) {
	for _, clients := range []int{1, 64, 1024} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			s := start(b, Settings{DataDir: b.TempDir()})
			for _, id := range ids("w", 16) {
				w := newWorker(b, id)
				w.info.MaxSequences, w.info.MaxBatchTokens = 4096, 1<<20
				w.info.TotalBlocks = 1 << 20
				w.hold = time.Microsecond
				w.join(s)
				b.Cleanup(w.leave)
			}
			until(b, "the workers are in session", func() bool { return s.Stats().Workers == 16 })
			next := make(chan int, clients)
			var calls sync.WaitGroup
			b.ResetTimer()
			for range clients {
				calls.Go(func() {
					for n := range next {
						r := request(fmt.Sprint("request-", n))
						r.Prompt = make([]int32, 128)
						if _, err := submit(s, r); err != nil {
							b.Error(err)
						}
					}
				})
			}
			before, _ := s.ChainHash()
			for n := range b.N {
				next <- n
			}
			close(next)
			calls.Wait()
			b.StopTimer()
			after, _ := s.ChainHash()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "admissions/s")
			b.ReportMetric(float64(b.N)/float64(max(1, after-before)), "admissions/entry")
		})
	}
}
