package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quire-serve/quire/kvcache/tier"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
	"pgregory.net/rapid"
)

// awaitDisk waits for a page to come up if the last plan left a sequence waiting for it.
func (r *rig) awaitDisk() bool {
	if r.p.lower == nil || !r.p.lower.fetching {
		return false
	}
	select {
	case <-r.p.lower.ready():
	case <-time.After(10 * time.Second):
		r.t.Fatal("a sequence waits for the disk, and nothing comes")
	}
	return true
}

// newTieredRig is a rig with pages of host memory, over files in dir if that is not empty.
func newTieredRig(t tb, s Settings, pages int, dir string, diskPages int64, costs Costs, edit ...func(*enginetest.Config, *Model)) *rig {
	t.Helper()
	s.PrefixCache = true
	r := newRig(t, s, edit...)
	bytes := 4 * r.p.BlockTokens
	var disk *tier.Disk
	if dir != "" {
		var err error
		disk, err = tier.OpenDisk(tier.DiskSettings{Dir: dir, PageBytes: bytes, Layout: tier.Layout{1}, MaxBytes: diskPages * int64(bytes+80)})
		if err != nil {
			t.Fatal(err)
		}
	}
	cache, err := tier.New(tier.Settings{PageBytes: bytes, Pages: pages, Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	r.model.Tiers = &Tiers{Cache: cache, Pages: r.runner.Pages(), Costs: costs}
	p, err := newPlanner(r.p.Settings, r.model)
	if err != nil {
		t.Fatal(err)
	}
	r.drive(p)
	r.diskless = disk == nil
	return r
}

// flood fills the pool with strangers, so that all that was cached is evicted.
func (r *rig) flood(seed int) {
	n := r.p.Blocks * r.p.BlockTokens
	r.add(ask(fmt.Sprintf("flood%d", seed), prompt(seed, n-1), 1))
	r.finish()
}

// TestHitsFromHostMemory: a prompt whose blocks were evicted comes back from host memory, computes
// one token, and says the same.
func TestHitsFromHostMemory(t *testing.T) {
	r := newTieredRig(t, Settings{Blocks: 8, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 64}, 64, "", 0, Costs{})
	defer r.model.Tiers.Cache.Close()
	first := ask("a", prompt(1, 20), 6)
	r.add(first)
	r.finish()
	r.want(first)
	r.flood(2)
	again := ask("b", prompt(1, 20), 6)
	rows := r.runner.Rows()
	r.add(again)
	r.finish()
	r.want(again)
	if h := r.got["b/0"]; h.cached != 19 {
		t.Errorf("%d prompt tokens were cached, want 19", h.cached)
	}
	// One prompt token and five of the six generated ones (the sixth is never computed).
	if n := r.runner.Rows() - rows; n != 6 {
		t.Errorf("%d tokens computed, want 6", n)
	}
	if s := r.p.stats().Tiers; s.HostHits != 5 || s.DiskHits != 0 {
		t.Errorf("tiers: %+v, want 5 hits in host memory", s)
	}
}

// TestHitsFromDisk: what a former engine evicted is found by the next, bit for bit; a damaged file
// is dropped and its block computed again.
func TestHitsFromDisk(t *testing.T) {
	dir := t.TempDir()
	s := Settings{Blocks: 8, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 64}
	before := newTieredRig(t, s, 64, dir, 1000, Costs{})
	first := ask("a", prompt(1, 20), 6)
	before.add(first)
	before.finish()
	before.flood(2)
	before.model.Tiers.Cache.Close()

	after := newTieredRig(t, s, 64, dir, 1000, Costs{})
	again := ask("b", prompt(1, 20), 6)
	after.add(again)
	after.finish()
	after.want(again)
	if h, s := after.got["b/0"], after.p.stats().Tiers; h.cached != 19 || s.DiskHits != 5 {
		t.Errorf("%d prompt tokens were cached, tiers %+v; want 19 tokens in 5 blocks from disk", h.cached, s)
	}
	after.model.Tiers.Cache.Close()

	damaged := 0
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".kv") {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		raw[len(raw)-3] ^= 0x40
		damaged++
		return os.WriteFile(path, raw, 0o600)
	})
	if err != nil || damaged < 5 {
		t.Fatalf("%d files damaged, %v", damaged, err)
	}
	last := newTieredRig(t, s, 64, dir, 1000, Costs{})
	defer last.model.Tiers.Cache.Close()
	more := ask("c", prompt(1, 20), 6)
	last.add(more)
	last.finish()
	last.want(more)
	if h, s := last.got["c/0"], last.p.stats().Tiers; h.cached != 0 || s.DiskHits != 0 {
		t.Errorf("%d prompt tokens came from damaged files, tiers %+v", h.cached, s)
	}
}

// TestOthersRunWhileBlocksRise: a stream gets a token in every step while another sequence's blocks
// are copied up, and equal prompts copy them once.
func TestOthersRunWhileBlocksRise(t *testing.T) {
	r := newTieredRig(t, Settings{Blocks: 64, BlockTokens: 4, MaxSequences: 8, MaxBatchTokens: 64}, 256, "", 0, Costs{})
	defer r.model.Tiers.Cache.Close()
	r.add(ask("a", prompt(1, 81), 1))
	r.finish()
	r.flood(2)
	r.p.lower.pages = 3
	stream := ask("s", prompt(3, 5), 60)
	r.add(stream)
	for range 5 {
		r.step()
	}
	twins := []*pb.Request{ask("b", prompt(1, 81), 4), ask("c", prompt(1, 81), 4)}
	r.add(twins...)
	for i := 0; len(r.got["b/0"].heardTokens()) == 0; i++ {
		had := len(r.got["s/0"].tokens)
		r.step()
		if len(r.got["s/0"].tokens) != had+1 {
			t.Fatalf("step %d gave the stream %d tokens, want 1", i, len(r.got["s/0"].tokens)-had)
		}
		if i > 40 {
			t.Fatal("the blocks never came")
		}
	}
	r.finish()
	r.want(stream)
	for _, q := range twins {
		r.want(q)
	}
	if s := r.p.stats().Tiers; s.HostHits != 20 {
		t.Errorf("%d blocks copied up, want 20: once for both", s.HostHits)
	}
	if h := r.got["c/0"]; h.cached != 80 {
		t.Errorf("the second of them had %d tokens cached, want 80", h.cached)
	}
}

func (h *heard) heardTokens() []int32 {
	if h == nil {
		return nil
	}
	return h.tokens
}

// TestOutputIsUndisturbedByTiers is [TestOutputIsUndisturbed] with blocks that move down and up:
// tiny pools over tiny tiers, aborts, failing steps. The device checks that no copy is of a page
// that a step in flight uses.
func TestOutputIsUndisturbedByTiers(t *testing.T) {
	lifted := int64(0)
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		bt := rapid.SampledFrom([]int{1, 4, 16}).Draw(t, "block tokens")
		s := Settings{
			BlockTokens:  bt,
			Blocks:       rapid.IntRange(2, 24).Draw(t, "blocks"),
			MaxSequences: rapid.IntRange(1, 8).Draw(t, "sequences"),
			PrefillChunk: rapid.SampledFrom([]int{0, 1, 7}).Draw(t, "chunk"),
			Depth:        rapid.IntRange(1, 2).Draw(t, "depth"),
			Speculate:    rapid.SampledFrom([]int{0, 0, 3}).Draw(t, "speculate"),
		}
		vocab := rapid.SampledFrom([]int{testVocab, 3}).Draw(t, "vocabulary")
		s.MaxBatchTokens = s.MaxSequences + rapid.IntRange(0, 40).Draw(t, "budget")
		hiccups := drawHiccups(t)
		files := ""
		if rapid.IntRange(0, 3).Draw(t, "disk") == 0 {
			files = dir
		}
		costs := rapid.SampledFrom([]Costs{{}, {Page: 10, Token: 1, Step: 100}, {Page: 1, Token: 10, Step: 150}}).Draw(t, "costs")
		r := newTieredRig(t, s, rapid.IntRange(1, 30).Draw(t, "pages"), files, 40, costs, func(c *enginetest.Config, m *Model) {
			m.ContextLength = 200
			m.Vocab, m.EOS = vocab, endings(vocab)
			hiccups(c)
		})
		defer r.model.Tiers.Cache.Close()
		r.p.lower.pages = rapid.IntRange(1, 5).Draw(t, "pages a plan")
		if rapid.IntRange(0, 2).Draw(t, "preempted") == 0 {
			r.preemptEach() // before every step
		}
		if rapid.Bool().Draw(t, "always guess") {
			r.always()
		}
		var asked []*pb.Request
		aborted := map[string]bool{}
		for n := rapid.IntRange(1, 10).Draw(t, "requests"); len(asked) < n; {
			q := drawRequest(t, len(asked), r.p.context, vocab, 0)
			if q == nil {
				n--
				continue
			}
			asked = append(asked, q)
			r.add(q)
			for range rapid.IntRange(0, 12).Draw(t, "steps") {
				r.step()
				if err := r.p.pool.Audit(); err != nil {
					t.Fatal(err)
				}
			}
			if rapid.IntRange(0, 5).Draw(t, "abort") == 0 {
				id := asked[rapid.IntRange(0, len(asked)-1).Draw(t, "whom")].Id
				if r.find(id) != nil {
					aborted[id] = true
					r.abort(id)
				}
			}
		}
		r.finish()
		for _, q := range asked {
			if aborted[q.Id] {
				r.wantPrefix(q)
			} else {
				r.want(q)
			}
			r.wantScores(q)
		}
		tiers := r.p.stats().Tiers
		lifted += tiers.HostHits + tiers.DiskHits
	})
	if lifted == 0 {
		t.Fatal("no block ever came from below")
	}
}
