package engine

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/kvcache/tier"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// lenders are other workers as a planner asks them. A fetch ends when the test says so.
type lenders struct{ flying []flight }

type flight struct {
	Fetch
	done func([]bool)
}

var _ Peers = (*lenders)(nil)

func (l *lenders) Fetch(f Fetch, done func([]bool)) { l.flying = append(l.flying, flight{f, done}) }

// end ends the oldest fetch with what from has of it, without the blocks that lost names.
func (l *lenders) end(from *rig, lost func(i int) bool) {
	f := l.flying[0]
	l.flying = l.flying[1:]
	whole := make([]bool, len(f.Hashes))
	for i, h := range f.Hashes {
		whole[i] = !lost(i) && from.p.readBlock(h, f.Pages[i])
		if !whole[i] {
			for k := range f.Pages[i] {
				f.Pages[i][k] = 0xff // as a transfer that broke off leaves it
			}
		}
	}
	f.done(whole)
}

func nothing(int) bool { return false }

// awaitsPeers reports whether planning again gets on once a fetch has ended.
func (r *rig) awaitsPeers() bool { return r.p.lower != nil && r.p.lower.flying > 0 }

// newFetchingRig is a rig that fetches into so many pages of host memory, which are a tier or for the
// passage alone.
func newFetchingRig(t tb, s Settings, pages int, transit bool, costs Costs, edit ...func(*enginetest.Config, *Model)) (*rig, *lenders) {
	t.Helper()
	r := newTieredRig(t, s, pages, "", 0, costs, edit...)
	peers := &lenders{}
	r.model.Tiers.Transit, r.model.Tiers.Peers = transit, peers
	p, err := newPlanner(r.p.Settings, r.model)
	if err != nil {
		t.Fatal(err)
	}
	r.drive(p)
	p.arrived = func(a arrival) { p.arrive(a) }
	return r, peers
}

// found is how many tokens were there when the request started.
func (r *rig) found(id string) int {
	for _, step := range r.p.traces(1 << 16) {
		for _, n := range step.Notes {
			if n.RequestID == id && n.Reason == noteAdmitted {
				return n.N
			}
		}
	}
	return 0
}

// freeze stops a rig where it is.
func (r *rig) freeze() {
	r.t.Helper()
	r.p.hold = holdAll
	for r.p.inFlight() > 0 {
		r.step()
	}
}

// onward is what a leader makes of a request that r was frozen with.
func (r *rig) onward(q *pb.Request) *pb.Request {
	out := proto.CloneOf(q)
	out.KvSource, out.Generated = "first:1", nil
	for c := range max(1, int(q.Sampling.N)) {
		ids := &pb.TokenIds{}
		if c < len(q.Generated) {
			ids.Ids = slices.Clone(q.Generated[c].Ids)
		}
		if h := r.got[key(q.Id, c)]; h != nil {
			ids.Ids = append(ids.Ids, h.tokens...)
		}
		out.Generated = append(out.Generated, ids)
	}
	return out
}

// noted reports whether a trace says so of a request.
func (r *rig) noted(id string, why Reason) bool {
	for _, s := range r.p.traces(1 << 16) {
		for _, n := range s.Notes {
			if n.RequestID == id && n.Reason == why {
				return true
			}
		}
	}
	return false
}

// TestFetchesInsteadOfComputing: a request that another engine was frozen with goes on with that one's
// blocks: less than a block is computed again, also where the last token in flight has filled one. Others
// run while it waits.
func TestFetchesInsteadOfComputing(t *testing.T) {
	for _, transit := range []bool{false, true} {
		for steps := range 12 {
			t.Run(fmt.Sprint("transit: ", transit, ", steps: ", steps), func(t *testing.T) {
				s := Settings{Blocks: 64, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 64}
				first, _ := newFetchingRig(t, s, 64, true, Costs{})
				q := ask("a", prompt(1, 37), 30)
				first.add(q)
				for range 3 + steps {
					first.step()
				}
				first.freeze()

				second, peers := newFetchingRig(t, s, 64, transit, Costs{})
				defer second.model.Tiers.Cache.Close()
				stream := ask("s", prompt(3, 5), 60)
				second.add(stream)
				for range 5 {
					second.step()
				}
				onward := first.onward(q)
				second.add(onward)
				for range 10 {
					had := len(second.got["s/0"].tokens)
					second.step()
					if len(second.got["s/0"].tokens) != had+1 {
						t.Fatal("the stream stands while another request waits for its blocks")
					}
				}
				if len(peers.flying) != 1 || peers.flying[0].Source != "first:1" || peers.flying[0].RequestID != "a" {
					t.Fatalf("%d fetches fly", len(peers.flying))
				}
				peers.end(first, nothing)
				second.finish()
				second.want(stream)
				second.want(onward)
				known := len(onward.Prompt) + len(onward.Generated[0].Ids)
				st := second.p.stats()
				if again := st.StepTokens - (st.GeneratedTokens - 2) - 5; again < 1 || again > 4 {
					t.Errorf("%d of %d known tokens were computed again, want 1 to 4", again, known)
				}
				if st.Tiers.PeerHits != int64((known-1)/4) || st.Tiers.HostHits != 0 {
					t.Errorf("tiers are %+v, want %d hits of another worker's", st.Tiers, (known-1)/4)
				}
				if !second.noted("a", noteFetching) {
					t.Error("no trace tells that it was fetching")
				}
				if pages := second.model.Tiers.Cache.Stats().Pages; transit != (pages == 0) {
					t.Errorf("%d pages are kept in host memory", pages)
				}
			})
		}
	}
}

// TestComputesWhatDoesNotCome: whatever is lost on the way is computed, and what is behind it is not taken
// for more than it is.
func TestComputesWhatDoesNotCome(t *testing.T) {
	s := Settings{Blocks: 64, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 64}
	for name, c := range map[string]struct {
		lost  func(int) bool
		again int64
	}{
		"all":         {func(int) bool { return true }, 38},
		"the first":   {func(i int) bool { return i == 0 }, 38},
		"from 3 on":   {func(i int) bool { return i >= 3 }, 38 - 12},
		"only one":    {func(i int) bool { return i == 5 }, 38 - 20},
		"nothing":     {nothing, 38 - 36},
		"the last":    {func(i int) bool { return i == 8 }, 38 - 32},
		"every other": {func(i int) bool { return i%2 == 1 }, 38 - 4},
	} {
		t.Run(name, func(t *testing.T) {
			first, _ := newFetchingRig(t, s, 64, true, Costs{})
			q := ask("a", prompt(1, 37), 30)
			first.add(q)
			for len(first.got) == 0 {
				first.step()
			}
			first.freeze()
			second, peers := newFetchingRig(t, s, 64, true, Costs{})
			onward := first.onward(q)
			onward.Generated[0].Ids = onward.Generated[0].Ids[:1]
			second.add(onward)
			second.step()
			peers.end(first, c.lost)
			second.finish()
			second.want(onward)
			if st := second.p.stats(); st.StepTokens-(st.GeneratedTokens-1) != c.again {
				t.Errorf("%d tokens were computed again, want %d", st.StepTokens-(st.GeneratedTokens-1), c.again)
			}
		})
	}
}

// TestFetchesInTurn: with room for the blocks of one request at a time, all of them come, one after the
// other; and one that is larger than the room comes as far as that goes.
func TestFetchesInTurn(t *testing.T) {
	s := Settings{Blocks: 128, BlockTokens: 4, MaxSequences: 8, MaxBatchTokens: 64}
	first, _ := newFetchingRig(t, s, 64, true, Costs{})
	var asked []*pb.Request
	for i := range 6 {
		n := 41
		if i == 5 {
			n = 81
		}
		asked = append(asked, ask(fmt.Sprint("r", i), prompt(i, n), 20))
	}
	first.add(asked...)
	for first.p.stats().GeneratedTokens < 12 {
		first.step()
	}
	first.freeze()
	second, peers := newFetchingRig(t, s, 12, true, Costs{})
	most := 0
	second.before = func() {
		if most = max(most, len(peers.flying)); len(peers.flying) > 0 {
			peers.end(first, nothing)
		}
	}
	var onward []*pb.Request
	for _, q := range asked {
		onward = append(onward, first.onward(q))
	}
	second.add(onward...)
	second.finish()
	for i, q := range onward {
		second.want(q)
		if cached := second.found(q.Id); i < 5 && cached < 40 || i == 5 && cached != 48 {
			t.Errorf("%s: %d prompt tokens came from elsewhere", q.Id, cached)
		}
	}
	if most != 1 {
		t.Errorf("%d fetches were under way at once, with room for one", most)
	}
}

// TestAsksWhereItPays: what is sooner computed is not fetched, and neither is what is here; the other
// worker hears of that. A fetch may take as long as computing.
func TestAsksWhereItPays(t *testing.T) {
	s := Settings{Blocks: 64, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 64}
	slow := Costs{Page: time.Microsecond, Token: 5 * time.Millisecond, Step: time.Millisecond}
	for name, c := range map[string]struct {
		costs  Costs
		here   bool
		blocks int
	}{
		"a slow device":        {slow, false, 10},
		"a fast device":        {Costs{Page: time.Microsecond, Token: 10 * time.Microsecond, Step: 10 * time.Microsecond}, false, 0},
		"a fast one, by cost":  {Costs{Page: time.Millisecond, Token: time.Millisecond / 2, Step: time.Microsecond}, false, 0},
		"what is here already": {slow, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r, peers := newFetchingRig(t, s, 64, true, c.costs)
			if c.here {
				r.add(ask("before", prompt(1, 41), 1))
				r.finish()
			}
			q := ask("a", prompt(1, 41), 5, func(q *pb.Request) { q.KvSource = "first:1" })
			r.add(q)
			r.step()
			r.step()
			if len(peers.flying) != 1 || len(peers.flying[0].Hashes) != c.blocks {
				t.Fatalf("%d fetches, want one of %d blocks", len(peers.flying), c.blocks)
			}
			if want := time.Duration(4*c.blocks) * c.costs.Token; peers.flying[0].Within != want {
				t.Errorf("it may take %v, want %v", peers.flying[0].Within, want)
			}
			if started := r.p.stats().Running > 0; started != (c.blocks == 0) {
				t.Errorf("started: %v", started)
			}
			peers.end(r, func(int) bool { return true })
			r.finish()
			r.want(q)
		})
	}
}

// TestReadsOnlyWhatIsFinal: no block is read while anything is computed or may be.
func TestReadsOnlyWhatIsFinal(t *testing.T) {
	s := Settings{Blocks: 64, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 64}
	r, _ := newFetchingRig(t, s, 64, false, Costs{})
	q := ask("a", prompt(1, 37), 30)
	r.add(q)
	r.step()
	r.step()
	hash := kvcache.Hashes(nil, kvcache.Root(nil, nil), q.Prompt, 4)[0]
	page := make([]byte, 16)
	if r.p.readBlock(hash, page) {
		t.Error("read while it computes")
	}
	r.freeze()
	if !r.p.readBlock(hash, page) {
		t.Error("not found after it stopped")
	}
	if r.p.readBlock(kvcache.Hash{1}, page) {
		t.Error("found what was never there")
	}
	// What moved down to host memory is found there.
	r.p.hold = holdNothing
	r.finish()
	r.flood(2)
	r.freeze()
	clear(page)
	if r.p.pool.Find(hash) != kvcache.NoBlock {
		t.Fatal("the block is still on the device")
	}
	if !r.p.readBlock(hash, page) || page[0] != byte(q.Prompt[0]) {
		t.Errorf("read %v from host memory, want the tokens %v", page, q.Prompt[:4])
	}
}

// TestOutputIsUndisturbedByFetches is [TestOutputIsUndisturbed] with requests that two engines run one
// after the other: pages are lost on the way, come late and in any order, requests are aborted, steps fail.
func TestOutputIsUndisturbedByFetches(t *testing.T) {
	fetched := int64(0)
	rapid.Check(t, func(t *rapid.T) {
		bt := rapid.SampledFrom([]int{1, 4, 16}).Draw(t, "block tokens")
		blocks := rapid.IntRange(2, 24).Draw(t, "blocks") // bounds how long a sequence may be on both
		draw := func(what string) Settings {
			s := Settings{
				BlockTokens:  bt,
				Blocks:       blocks,
				MaxSequences: rapid.IntRange(1, 8).Draw(t, what+": sequences"),
				PrefillChunk: rapid.SampledFrom([]int{0, 1, 7}).Draw(t, what+": chunk"),
				Depth:        rapid.IntRange(1, 2).Draw(t, what+": depth"),
				Speculate:    rapid.SampledFrom([]int{0, 0, 3}).Draw(t, what+": speculate"),
			}
			s.MaxBatchTokens = s.MaxSequences + rapid.IntRange(0, 40).Draw(t, what+": budget")
			return s
		}
		vocab := rapid.SampledFrom([]int{testVocab, 3}).Draw(t, "vocabulary")
		hiccups := drawHiccups(t)
		edit := func(c *enginetest.Config, m *Model) {
			m.ContextLength = 200
			m.Vocab, m.EOS = vocab, endings(vocab)
			hiccups(c)
		}
		first, _ := newFetchingRig(t, draw("first"), rapid.IntRange(1, 30).Draw(t, "first: pages"), rapid.Bool().Draw(t, "first: transit"), Costs{}, edit)
		second, peers := newFetchingRig(t, draw("second"), rapid.IntRange(1, 30).Draw(t, "second: pages"), rapid.Bool().Draw(t, "second: transit"), Costs{}, edit)
		second.p.lower.pages = rapid.IntRange(1, 5).Draw(t, "pages a plan")
		var asked []*pb.Request
		for n := rapid.IntRange(1, 6).Draw(t, "requests"); len(asked) < n; {
			q := drawRequest(t, len(asked), first.p.context, vocab, 0)
			if q == nil {
				n--
				continue
			}
			asked = append(asked, q)
			first.add(q)
			for range rapid.IntRange(0, 12).Draw(t, "steps") {
				first.step()
			}
		}
		first.freeze()
		losing := rapid.SampledFrom([]int{0, 0, 1, 5}).Draw(t, "lost in ten")
		aborted := map[string]bool{}
		var onward []*pb.Request
		for _, q := range asked {
			over := true
			for c := range max(1, int(q.Sampling.N)) {
				h := first.got[key(q.Id, c)]
				over = over && h != nil && h.finish != 0
			}
			if over || q.Sampling.Logprobs != nil || q.Sampling.PromptLogprobs != nil {
				continue // it ended there; with log-probabilities it would begin anew
			}
			n := first.onward(q)
			onward = append(onward, n)
			second.add(n)
			for range rapid.IntRange(0, 4).Draw(t, "steps") {
				second.step()
				if len(peers.flying) > 0 && rapid.Bool().Draw(t, "arrives") {
					i := rapid.IntRange(0, len(peers.flying)-1).Draw(t, "which")
					peers.flying[0], peers.flying[i] = peers.flying[i], peers.flying[0]
					peers.end(first, func(int) bool { return rapid.IntRange(0, 9).Draw(t, "lost") < losing })
				}
				if err := second.p.pool.Audit(); err != nil {
					t.Fatal(err)
				}
			}
			if rapid.IntRange(0, 5).Draw(t, "abort") == 0 {
				if id := onward[rapid.IntRange(0, len(onward)-1).Draw(t, "whom")].Id; second.find(id) != nil {
					aborted[id] = true
					second.abort(id)
				}
			}
		}
		second.before = func() {
			if len(peers.flying) > 0 {
				peers.end(first, nothing)
			}
		}
		second.finish()
		for _, q := range onward {
			if !aborted[q.Id] {
				second.want(q)
			}
		}
		fetched += second.p.stats().Tiers.PeerHits
	})
	if fetched == 0 {
		t.Fatal("no block was ever fetched")
	}
}

// TestFreezes: an engine that is frozen in the middle has given out all that it computed, refuses what is
// new, says which requests are left, and has their blocks read.
func TestFreezes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := Settings{Blocks: 64, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 64, PrefixCache: true, Logger: quiet()}.WithDefaults()
		runner := enginetest.NewRunner(enginetest.Config{
			Pages: s.Blocks, BlockTokens: 4, Vocab: testVocab, Limits: s.Limits(),
			Gate: func(int) { time.Sleep(time.Millisecond) }, // so that it does not end first
		})
		cache, err := tier.New(tier.Settings{PageBytes: 16, Pages: 8})
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan int, 4096)
		e, err := New(s, Model{Runner: runner, ContextLength: 4096, Vocab: testVocab, Tiers: &Tiers{Cache: cache, Transit: true, Pages: runner.Pages()}}, func(events []Event) {
			for _, x := range events {
				heard <- len(x.Tokens)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }()
		q := ask("a", prompt(1, 37), 4000)
		if err := e.Add(q); err != nil {
			t.Fatal(err)
		}
		got := <-heard
		if err := e.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		for len(heard) > 0 {
			got += <-heard
		}
		if n := e.Stats().GeneratedTokens; int64(got) != n {
			t.Errorf("%d tokens of %d were given out", got, n)
		}
		if live := e.Live(); !slices.Equal(live, []string{"a"}) {
			t.Errorf("left are %v", live)
		}
		if err := e.Add(ask("b", prompt(2, 5), 5)); err == nil {
			t.Error("a frozen engine took a request")
		}
		page := make([]byte, 16)
		for i, h := range kvcache.Hashes(nil, kvcache.Root(nil, nil), q.Prompt, 4) {
			found, err := e.ReadBlock(t.Context(), h, page)
			if err != nil || !found || page[0] != byte(q.Prompt[4*i]) {
				t.Errorf("block %d: found %v, %v, %v", i, found, page, err)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		// Nobody answers any more.
		if _, err := e.ReadBlock(ctx, kvcache.Hash{}, page); err == nil {
			t.Error("read from an engine that has ended")
		}
	})
}
