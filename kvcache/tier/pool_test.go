package tier

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/quire-serve/quire/kvcache"
	"pgregory.net/rapid"
)

// engine is the smallest user of a pool with tiers. Its device keeps eight bytes for each token: a
// number that depends on the token and on all before it.
type engine struct {
	pool   *kvcache.Pool
	cache  *Cache
	bt     int
	memory []byte
	loaded int // blocks that came from below
}

func (e *engine) page(id kvcache.BlockID) []byte {
	n := 8 * e.bt
	return e.memory[int(id)*n : (int(id)+1)*n]
}

// run admits a prompt, computes what neither the device nor the tiers have, checks every number,
// and lets the prompt go.
func (e *engine) run(t interface{ Fatalf(string, ...any) }, tokens []int32) {
	s := e.pool.NewSequence(kvcache.Hash{})
	computed, _, _, err := s.Begin(tokens, len(tokens))
	if err != nil {
		t.Fatalf("%v", err)
	}
	var pinned [][]byte
	first := computed / e.bt
	var below []kvcache.Hash
	if computed%e.bt == 0 {
		below = slices.Clone(s.Hashes()[first:])
		host, _ := e.cache.Match(below)
		below = below[:host]
	}
	for _, h := range below {
		pinned = append(pinned, e.cache.Pin(h))
	}
	for _, ev := range e.pool.Evicted(nil) {
		if page := e.cache.Reserve(ev.Hash, ev.Parent, ev.Tenant); page != nil {
			copy(page, e.page(ev.Block))
			e.cache.Commit(ev.Hash, true)
		}
	}
	for i, page := range pinned {
		copy(e.page(s.Table()[first+i]), page)
		e.cache.Unpin(below[i])
		e.loaded++
	}
	computed = min(computed+len(below)*e.bt, len(tokens)-1)
	s.Publish(tokens)
	e.pool.EndStep()
	v := uint64(1)
	for i, token := range tokens {
		v = (v ^ uint64(token)) * 0x100000001b3
		cell := e.page(s.Table()[i/e.bt])[8*(i%e.bt):]
		if i >= computed {
			binary.LittleEndian.PutUint64(cell, v)
		} else if got := binary.LittleEndian.Uint64(cell); got != v {
			t.Fatalf("token %d of %v: the cache has %x, computing gives %x", i, tokens, got, v)
		}
	}
	s.Release()
	for _, c := range e.cache.Changes(nil) {
		e.pool.RecordTier(c.Kind, c.Medium, c.Hash, c.Parent)
	}
	if err := e.pool.Audit(); err != nil {
		t.Fatalf("%v", err)
	}
}

func newEngine(t interface{ Fatalf(string, ...any) }, blocks, bt, pages int, disk *Disk) *engine {
	p, err := kvcache.NewPool(kvcache.Config{Blocks: blocks, BlockTokens: bt, PrefixCache: true, ReportEvictions: true, Events: true})
	if err != nil {
		t.Fatalf("%v", err)
	}
	c, err := New(Settings{PageBytes: 8 * bt, Pages: pages, Disk: disk})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return &engine{pool: p, cache: c, bt: bt, memory: make([]byte, blocks*8*bt)}
}

// TestPropTiers: whatever moves down and up, every number is what computing would give.
func TestPropTiers(t *testing.T) {
	total := 0
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		bt := rapid.IntRange(1, 4).Draw(t, "blockTokens")
		disk, err := OpenDisk(DiskSettings{
			Dir: dir, PageBytes: 8 * bt, Layout: testLayout,
			MaxBytes: rapid.Int64Range(1, 30).Draw(t, "diskPages") * int64(8*bt+headerBytes),
		})
		if err != nil {
			t.Fatal(err)
		}
		e := newEngine(t, rapid.IntRange(16/bt+1, 20).Draw(t, "blocks"), bt, rapid.IntRange(1, 12).Draw(t, "pages"), disk)
		defer e.cache.Close()
		for range rapid.IntRange(1, 12).Draw(t, "prompts") {
			prompt := rapid.SliceOfN(rapid.Int32Range(0, 1), 1, 16).Draw(t, "prompt")
			if rapid.Bool().Draw(t, "ahead") {
				e.cache.Prefetch(kvcache.Hashes(nil, kvcache.Hash{}, prompt, bt), 0)
			}
			e.run(t, prompt)
		}
		total += e.loaded
	})
	if total == 0 {
		t.Fatal("nothing ever came from below")
	}
}

// TestTiersHoldMore: prompts that a small device cannot keep are found below, and none is computed
// twice.
func TestTiersHoldMore(t *testing.T) {
	e := newEngine(t, 8, 4, 64, nil)
	defer e.cache.Close()
	prompts := make([][]int32, 8)
	for i := range prompts {
		for j := range 24 {
			prompts[i] = append(prompts[i], int32(100*i+j))
		}
		e.run(t, prompts[i])
	}
	e.loaded = 0
	for _, p := range prompts {
		e.run(t, p)
	}
	// Every one was evicted by the next: all its blocks come from below, or, some, from the device.
	if hits := int(e.pool.Stats().HitTokens)/4 + e.loaded; hits < 8*6-2 {
		t.Fatalf("%d blocks of %d were found", hits, 8*6)
	}
}

func BenchmarkReserveCommit(b *testing.B) {
	c, err := New(Settings{PageBytes: 4096, Pages: 1024})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		if c.Reserve(name(i), name(i-1), 0) == nil {
			b.Fatal("refused")
		}
		c.Commit(name(i), true)
		if i%512 == 0 {
			c.Changes(nil)
		}
	}
}
