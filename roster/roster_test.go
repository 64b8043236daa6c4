package roster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// follower is a gateway: what it is attached to is made of the changes alone.
type follower struct {
	view     View
	attached map[string]*pb.WorkerInfo
	// stream holds the parts on their way; told is what the leader has told on this stream.
	stream []*pb.RosterNews
	told   *pb.RosterPosition
}

func (f *follower) connect(leader *Roster) {
	f.stream, f.told = nil, f.view.Known()
	f.tell(leader)
}

func (f *follower) tell(leader *Roster) {
	if news := leader.Since(f.told); len(news) > 0 {
		f.stream, f.told = append(f.stream, news...), news[len(news)-1].GetAt()
	}
}

// hear takes in the next part; a gap ends the stream.
func (f *follower) hear(t *rapid.T, leader *Roster) {
	if len(f.stream) == 0 {
		return
	}
	part := f.stream[0]
	f.stream = f.stream[1:]
	before := proto.Clone(f.view.at)
	came, left, err := f.view.Apply(part)
	if err != nil {
		if !proto.Equal(before, f.view.at) {
			t.Fatalf("news with a gap moved the view from %v to %v", before, f.view.at)
		}
		f.connect(leader)
		return
	}
	for _, id := range left {
		if f.attached[id] == nil {
			t.Fatalf("%s left, and was not there", id)
		}
		delete(f.attached, id)
	}
	for _, w := range came {
		if proto.Equal(f.attached[w.GetId()], w) {
			t.Fatalf("%s came again as it was", w.GetId())
		}
		f.attached[w.GetId()] = w
	}
	if got := slices.SortedFunc(maps.Values(f.attached), byID); !slices.EqualFunc(got, f.view.Workers(), func(a, b *pb.WorkerInfo) bool { return proto.Equal(a, b) }) {
		t.Fatalf("the changes make %v, the view has %v", got, f.view.Workers())
	}
}

func byID(a, b *pb.WorkerInfo) int { return strings.Compare(a.GetId(), b.GetId()) }

// TestViewEqualsRoster: whatever happens to leaders, streams and single messages, who hears all equals who
// tells.
func TestViewEqualsRoster(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		leaders := uint64(1)
		leader := New(leaders)
		truth := map[string]*pb.WorkerInfo{}
		f := &follower{attached: map[string]*pb.WorkerInfo{}}
		f.connect(leader)
		// Large ones make a set of several parts.
		size := rapid.SampledFrom([]int{10, partBytes / 3}).Draw(t, "bytes of a worker")
		worker := func() string { return fmt.Sprint("w", rapid.IntRange(0, 8).Draw(t, "worker")) }
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				w := &pb.WorkerInfo{Id: worker(), Address: fmt.Sprint(rapid.IntRange(1, 3).Draw(t, "port")), ModelPath: strings.Repeat("x", size)}
				leader.Put(w)
				truth[w.GetId()] = w
			},
			"remove": func(t *rapid.T) { id := worker(); leader.Remove(id); delete(truth, id) },
			"flap": func(t *rapid.T) {
				// So many that the leader may have forgotten what somebody knows.
				w := &pb.WorkerInfo{Id: "flapping"}
				for range rapid.IntRange(1, 3*leastRemembered/2).Draw(t, "times") {
					leader.Put(w)
					leader.Remove("flapping")
				}
				delete(truth, "flapping")
			},
			"tell":  func(*rapid.T) { f.tell(leader) },
			"hear":  func(t *rapid.T) { f.hear(t, leader) },
			"break": func(*rapid.T) { f.connect(leader) },
			"lose": func(*rapid.T) {
				if len(f.stream) > 0 {
					f.stream = f.stream[1:]
				}
			},
			"repeat": func(*rapid.T) {
				if len(f.stream) > 0 {
					f.stream = slices.Insert(f.stream, 0, f.stream[0])
				}
			},
			"elect": func(t *rapid.T) {
				// A leader begins with the log's workers, which may be other than the last one's.
				leaders++
				leader = New(leaders)
				for _, id := range slices.Sorted(maps.Keys(truth)) {
					if rapid.IntRange(0, 3).Draw(t, "known") > 0 {
						leader.Put(truth[id])
					} else {
						delete(truth, id)
					}
				}
				f.connect(leader)
			},
			"": func(t *rapid.T) {
				if len(f.stream) > 20 {
					f.connect(leader) // Keep the case small.
				}
			},
		})
		// A message that was lost is noticed with the next one, or on the next stream.
		f.connect(leader)
		for len(f.stream) > 0 {
			f.hear(t, leader)
		}
		want := slices.SortedFunc(maps.Values(truth), byID)
		if got := f.view.Workers(); !slices.EqualFunc(got, want, func(a, b *pb.WorkerInfo) bool { return proto.Equal(a, b) }) {
			t.Fatalf("the view has %v, the leader %v", got, want)
		}
	})
}

// TestNewsAreAsLargeAsWhatChanged counts what is said of a pool of 1,000 workers.
func TestNewsAreAsLargeAsWhatChanged(t *testing.T) {
	r := New(1)
	put := func(n, version int) {
		r.Put(&pb.WorkerInfo{Id: fmt.Sprint("worker-", n), Address: fmt.Sprint("10.0.0.1:", version), Model: "m", ModelDigest: strings.Repeat("d", 64), ModelPath: strings.Repeat("p", 64)})
	}
	for n := range 1000 {
		put(n, 1)
	}
	bytes := func(parts []*pb.RosterNews) (sum int) {
		for _, p := range parts {
			sum += proto.Size(p)
		}
		return sum
	}
	whole := r.Since(nil)
	at := whole[len(whole)-1].GetAt()
	if r.Since(at) != nil {
		t.Error("nothing has changed, and something is said")
	}
	random := rand.New(rand.NewPCG(1, 1))
	for _, changes := range []int{1, 10, 100} {
		for range changes {
			put(random.IntN(1000), 2+random.IntN(1<<20))
		}
		news := r.Since(at)
		said := 0
		for _, part := range news {
			said += len(part.GetWorkers()) + len(part.GetLeft())
		}
		if said > changes || bytes(news) > bytes(whole)*(changes+1)/1000 {
			t.Errorf("%d changes: %d workers in %d bytes are told; the whole set takes %d bytes", changes, said, bytes(news), bytes(whole))
		}
		at = news[len(news)-1].GetAt()
	}
}

// TestForgottenChangesAreMadeUpFor: who has been away for longer than the leader remembers gets the whole set,
// and what the leader remembers is bounded.
func TestForgottenChangesAreMadeUpFor(t *testing.T) {
	r := New(1)
	at := r.Since(nil)[0].GetAt()
	for n := range 10 * leastRemembered {
		r.Put(&pb.WorkerInfo{Id: "w", Address: fmt.Sprint(n)})
	}
	if len(r.changed) > 2*leastRemembered {
		t.Errorf("%d changes are remembered", len(r.changed))
	}
	if news := r.Since(at); len(news) != 1 || !news[0].GetWhole() || len(news[0].GetWorkers()) != 1 {
		t.Errorf("after %d changes: %v", 10*leastRemembered, news)
	}
}
