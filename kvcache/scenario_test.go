package kvcache

import (
	"errors"
	"slices"
	"testing"
)

// The scenarios by their ids. Where the list counts blocks from 1, because it reserves block 0, the
// same block is one less here.

func pool(t testing.TB, c Config) *Pool {
	t.Helper()
	if c.BlockTokens == 0 {
		c.BlockTokens = 16
	}
	p, err := NewPool(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Audit(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// ids makes n tokens; those of different series share none.
func ids(series, n int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = int32(series*10_000 + i)
	}
	return tokens
}

func concat(parts ...[]int32) []int32 { return slices.Concat(parts...) }

// start admits a whole prompt and runs its step.
func start(t testing.TB, p *Pool, root Hash, tokens []int32) (s *Sequence, cached int) {
	t.Helper()
	s = p.NewSequence(root)
	cached, _, _, err := s.Begin(tokens, len(tokens))
	if err != nil {
		t.Fatalf("Begin of %d tokens with %d blocks free: %v", len(tokens), p.Free(), err)
	}
	s.Publish(tokens)
	p.EndStep()
	return s, cached
}

// freeOrder is the order in which blocks will be taken.
func (p *Pool) freeOrder() []BlockID {
	return append(p.free.order(p.blocks), p.cached.order(p.blocks)...)
}

func wantIDs(t testing.TB, what string, got []BlockID, want ...BlockID) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func wantInt(t testing.TB, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %d, want %d", what, got, want)
	}
}

func TestScenarioA5(t *testing.T) {
	p := pool(t, Config{Blocks: 4, PrefixCache: true})
	h := Hashes(nil, Hash{}, ids(0, 48), 16)
	for id, i := range []int{0, 1, 2, 0} {
		p.blocks[id].hash = h[i]
		p.index.insert(p.blocks, BlockID(id))
	}
	evict := func(id BlockID) { p.unname(id) }
	evict(1)
	if id := p.index.find(p.blocks, &h[1]); id != NoBlock {
		t.Fatalf("H1 still resolves to %d", id)
	}
	evict(0)
	wantInt(t, "H0 resolves to", int(p.index.find(p.blocks, &h[0])), 3)
	evict(2)
	evict(3)
	wantInt(t, "hashes left", p.index.n, 0)
}

func TestScenarioA6(t *testing.T) {
	p := pool(t, Config{Blocks: 10, PrefixCache: true})
	s, _ := start(t, p, Hash{}, ids(0, 64))
	s.Release()
	before := slices.Clone(p.blocks)
	stats := p.Stats()
	// Four blocks hit, seven more would be needed: eleven.
	r := p.NewSequence(Hash{})
	if _, _, _, err := r.Begin(concat(ids(0, 64), ids(1, 112)), 176); !errors.Is(err, ErrNoBlocks) {
		t.Fatalf("Begin: %v, want ErrNoBlocks", err)
	}
	if !slices.Equal(before, p.blocks) || p.Stats() != stats || len(r.Table()) != 0 {
		t.Fatal("a refused Begin changed something")
	}
	r.Release()
	s, _ = start(t, p, Hash{}, ids(2, 32))
	before, table := slices.Clone(p.blocks), slices.Clone(s.Table())
	if err := s.Grow(161); !errors.Is(err, ErrNoBlocks) {
		t.Fatalf("Grow: %v, want ErrNoBlocks", err)
	}
	if !slices.Equal(before, p.blocks) || !slices.Equal(table, s.Table()) {
		t.Fatal("a refused Grow changed something")
	}
}

func TestScenarioA7(t *testing.T) {
	p := pool(t, Config{Blocks: 1, PrefixCache: true})
	s, _ := start(t, p, Hash{}, ids(0, 16))
	s.Release()
	s, _ = start(t, p, Hash{}, ids(1, 15))
	if h := p.blocks[0].hash; h != (Hash{}) {
		t.Fatalf("a block reused for 15 tokens is still named %v", h)
	}
	s.Release()
	s = p.NewSequence(Hash{})
	wantInt(t, "hit after reuse", s.Lookup(ids(0, 16)), 0)
	s.Release()
}

// TestScenarioA9 includes its predecessor: two requests that share three blocks.
func TestScenarioA9(t *testing.T) {
	p := pool(t, Config{Blocks: 10, PrefixCache: true})
	common := ids(0, 48)
	req0, _ := start(t, p, Hash{}, concat(common, ids(1, 7)))
	req1, cached := start(t, p, Hash{}, concat(common, ids(2, 5)))
	wantInt(t, "req1 hit", cached, 48)
	wantIDs(t, "req1", req1.Table(), 0, 1, 2, 4)
	req0.Release()
	req1.Release()
	req2, cached := start(t, p, Hash{}, concat(common, ids(3, 6)))
	wantInt(t, "req2 hit", cached, 48)
	wantIDs(t, "req2", req2.Table(), 0, 1, 2, 4)
	wantInt(t, "free", p.Free(), 6)
	req2.Release()
	req3, _ := start(t, p, Hash{}, ids(4, 160))
	wantIDs(t, "req3", req3.Table(), 4, 3, 5, 6, 7, 8, 9, 2, 1, 0)
}

func TestScenarioA10(t *testing.T) {
	p := pool(t, Config{Blocks: 10, PrefixCache: true})
	req0, _ := start(t, p, Hash{}, ids(0, 5*16+7))
	req1, _ := start(t, p, Hash{}, ids(1, 48))
	req0.Release()
	wantIDs(t, "free after req0", p.freeOrder(), 5, 9, 4, 3, 2, 1, 0)
	req1.Release()
	wantIDs(t, "free after req1", p.freeOrder(), 5, 9, 4, 3, 2, 1, 0, 8, 7, 6)
	req2, cached := start(t, p, Hash{}, concat(ids(0, 32), ids(2, 3)))
	wantInt(t, "req2 hit", cached, 32)
	wantIDs(t, "req2", req2.Table(), 0, 1, 5)
	wantInt(t, "free", p.Free(), 7)
}

func TestScenarioA11(t *testing.T) {
	p := pool(t, Config{Blocks: 2, PrefixCache: true})
	req0, _ := start(t, p, Hash{}, ids(0, 16))
	req1, _ := start(t, p, Hash{}, ids(1, 15)) // computed but not full: its block is free afterwards
	req0.Release()
	req1.Release()
	req2, cached := start(t, p, Hash{}, concat(ids(0, 16), ids(2, 16)))
	wantInt(t, "req2 hit", cached, 16)
	wantIDs(t, "req2", req2.Table(), 0, 1)
	req2.Release()
	// Both cached now: the hit block is revived, and the other one goes.
	req3, _ := start(t, p, Hash{}, concat(ids(0, 16), ids(3, 16)))
	wantIDs(t, "req3", req3.Table(), 0, 1)
}

func TestScenarioA13(t *testing.T) {
	p := pool(t, Config{Blocks: 2, PrefixCache: true})
	req0, _ := start(t, p, Hash{}, ids(0, 16))
	req0.Release()
	s := p.NewSequence(Hash{})
	wantInt(t, "hit", s.Lookup(concat(ids(0, 16), ids(1, 4))), 16)
	wantInt(t, "blocks charged", s.Need(20), 2)
	if _, _, _, err := s.Begin(concat(ids(0, 16), ids(1, 4)), 20); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, "one hit, one new", s.Table(), 0, 1)
	wantInt(t, "free", p.Free(), 0)
}

func TestScenarioA14(t *testing.T) {
	p := pool(t, Config{Blocks: 4, BlockTokens: 4})
	s, _ := start(t, p, Hash{}, ids(0, 10))
	wantInt(t, "blocks", len(s.Table()), 3)
	s.Release()
	s, cached := start(t, p, Hash{}, ids(0, 16))
	wantInt(t, "hit with caching off", cached, 0)
	wantInt(t, "blocks", len(s.Table()), 4)
	r := p.NewSequence(Hash{})
	if _, _, _, err := r.Begin(ids(1, 4), 4); !errors.Is(err, ErrNoBlocks) {
		t.Fatalf("fifth block: %v, want ErrNoBlocks", err)
	}
	wantInt(t, "queries counted with caching off", int(p.Stats().QueryTokens), 0)
}

func TestScenarioB1(t *testing.T) {
	root := Root([]byte("tenant"), nil)
	h := Hashes(nil, root, ids(0, 6), 3)
	wantInt(t, "hashes", len(h), 2)
	if h[0] != ChildHash(root, ids(0, 6)[:3]) || h[1] != ChildHash(h[0], ids(0, 6)[3:]) {
		t.Fatal("hashes are not chained")
	}
	wantInt(t, "hashes of 55 tokens", len(Hashes(nil, root, ids(0, 55), 16)), 3)
}

func TestScenarioB2(t *testing.T) {
	p := pool(t, Config{Blocks: 4, BlockTokens: 4, PrefixCache: true, Events: true})
	tokens := []int32{1, 2, 3, 4, 1, 2, 3, 4}
	start(t, p, Hash{}, tokens)
	events := p.Events(nil)
	if len(events) != 1 || len(events[0].Hashes) != 2 || events[0].Hashes[0] == events[0].Hashes[1] {
		t.Fatalf("events %v: equal tokens at two positions must have two hashes", events)
	}
	if events[0].Parent != (Hash{}) {
		t.Fatalf("the first block's parent is %v", events[0].Parent)
	}
	if want := ChildHash(events[0].Hashes[0], tokens[4:]); events[0].Hashes[1] != want {
		t.Fatal("the second block's parent is not the first")
	}
}

func TestScenarioB3(t *testing.T) {
	p := pool(t, Config{Blocks: 20, PrefixCache: true})
	prompt := ids(0, 55)
	a, _ := start(t, p, Root([]byte("salt 1"), nil), prompt)
	b, cached := start(t, p, Root([]byte("salt 1"), nil), concat(prompt[:48], ids(1, 7)))
	wantInt(t, "same salt", cached, 48)
	c, cached := start(t, p, Root([]byte("salt 2"), nil), prompt)
	wantInt(t, "other salt", cached, 0)
	if a.Hashes()[0] != b.Hashes()[0] || a.Hashes()[0] == c.Hashes()[0] {
		t.Fatal("first block's hash does not follow the salt")
	}
}

func TestScenarioB5(t *testing.T) {
	p := pool(t, Config{Blocks: 20, PrefixCache: true})
	a, _ := start(t, p, Root(nil, []byte("adapter a")), ids(0, 48))
	b, cached := start(t, p, Root(nil, []byte("adapter b")), ids(0, 48))
	wantInt(t, "hit under another adapter", cached, 0)
	for i := range a.Hashes() {
		if a.Hashes()[i] == b.Hashes()[i] {
			t.Fatalf("block %d has one hash under two adapters", i)
		}
	}
	// A salt and an adapter do not run into each other.
	if Root([]byte("ab"), []byte("c")) == Root([]byte("a"), []byte("bc")) {
		t.Fatal("salt and adapter are not kept apart")
	}
}

func TestScenarioB6(t *testing.T) {
	p := pool(t, Config{Blocks: 40, PrefixCache: true})
	prompt := ids(0, 64)
	hashes := func(items ...Item) []Hash {
		s := p.NewSequence(Hash{})
		defer s.Release()
		s.SetItems(items)
		s.Lookup(prompt)
		return slices.Clone(s.Hashes())
	}
	image := func(id string, start int) Item { return Item{Start: start, End: start + 20, ID: []byte(id)} }
	base := hashes(image("cat", 4))
	for name, other := range map[string][]Hash{
		"another image": hashes(image("dog", 4)),
		"moved by one":  hashes(image("cat", 5)),
		"no image":      hashes(),
	} {
		for i := range base {
			if base[i] == other[i] {
				t.Errorf("%s: block %d keeps its hash", name, i)
			}
		}
	}
	if later := hashes(image("cat", 20)); later[0] != hashes()[0] || later[1] == hashes()[1] {
		t.Error("an image in block 1 must change block 1 and not block 0")
	}
	if !slices.Equal(base, hashes(image("cat", 4))) {
		t.Error("the same image hashes differently")
	}
}

func TestScenarioB7(t *testing.T) {
	p := pool(t, Config{Blocks: 20, PrefixCache: true})
	placeholders := make([]int32, 32)
	begin := func(embedding string) int {
		s := p.NewSequence(Hash{})
		s.SetItems([]Item{{Start: 0, End: 32, ID: []byte(embedding)}})
		cached, _, _, err := s.Begin(placeholders, 32)
		if err != nil {
			t.Fatal(err)
		}
		s.Publish(placeholders)
		p.EndStep()
		return cached
	}
	wantInt(t, "first", begin("\x00\x01"), 0)
	wantInt(t, "other embedding", begin("\x00\x02"), 0)
	wantInt(t, "same embedding", begin("\x00\x01"), 31)
}

func TestScenarioB9(t *testing.T) {
	p := pool(t, Config{Blocks: 20, PrefixCache: true})
	root := Root([]byte("salt"), nil)
	tokens := ids(0, 59)
	s, _ := start(t, p, root, tokens)
	wantInt(t, "hashes of the prompt", len(s.Hashes()), 3)
	tokens = concat(tokens, ids(1, 5))
	if err := s.Grow(64); err != nil {
		t.Fatal(err)
	}
	s.Publish(tokens)
	wantInt(t, "hashes after 5 tokens", len(s.Hashes()), 4)
	if s.Hashes()[3] != ChildHash(s.Hashes()[2], tokens[48:]) {
		t.Fatal("the fourth is not chained on the third")
	}
}

func TestScenarioB10(t *testing.T) {
	p := pool(t, Config{Blocks: 20, PrefixCache: true})
	tokens := ids(0, 17)
	want := map[string]BlockID{}
	for _, key := range []string{"key1", "key2", ""} {
		s, cached := start(t, p, Root(nil, []byte(key)), tokens)
		wantInt(t, "first under "+key, cached, 0)
		want[key] = s.Table()[0]
	}
	for key, id := range want {
		s, cached := start(t, p, Root(nil, []byte(key)), tokens)
		wantInt(t, "again under "+key, cached, 16)
		wantInt(t, "block under "+key, int(s.Table()[0]), int(id))
	}
	s := p.NewSequence(Root(nil, []byte("key3")))
	wantInt(t, "unknown key", s.Lookup(tokens), 0)
}

func TestScenarioB11(t *testing.T) {
	p := pool(t, Config{Blocks: 20, PrefixCache: true})
	prompt := ids(0, 55)
	begin := func(read bool) (*Sequence, int) {
		s := p.NewSequence(Hash{})
		if !read {
			s.SetReadable(0)
		}
		cached, _, _, err := s.Begin(prompt, len(prompt))
		if err != nil {
			t.Fatal(err)
		}
		s.Publish(prompt)
		p.EndStep()
		return s, cached
	}
	req0, cached := begin(false)
	wantInt(t, "req0 hit", cached, 0)
	wantIDs(t, "req0", req0.Table(), 0, 1, 2, 3)
	_, cached = begin(true)
	wantInt(t, "req1 hit", cached, 48)
	req2, cached := begin(false)
	wantInt(t, "req2 hit", cached, 0)
	wantIDs(t, "req2", req2.Table(), 5, 6, 7, 8)
	for i := range 3 {
		if p.blocks[req2.Table()[i]].hash != p.blocks[req0.Table()[i]].hash {
			t.Fatalf("block %d: hashes differ", i)
		}
	}
}

func TestScenarioC1(t *testing.T) {
	p := pool(t, Config{Blocks: 20, PrefixCache: true})
	tokens := ids(0, 55)
	s, _ := start(t, p, Hash{}, tokens)
	named := func(i int) bool { return p.blocks[s.Table()[i]].hash != Hash{} }
	wantInt(t, "blocks", len(s.Table()), 4)
	if named(3) {
		t.Fatal("a block with 7 tokens has a hash")
	}
	grow := func(n int) {
		tokens = concat(tokens, ids(len(tokens), n))
		if err := s.Grow(len(tokens)); err != nil {
			t.Fatal(err)
		}
		s.Publish(tokens)
		p.EndStep()
	}
	grow(4)
	wantInt(t, "blocks after 4", len(s.Table()), 4)
	grow(19)
	wantInt(t, "blocks after 19 more", len(s.Table()), 5)
	if !named(3) || named(4) {
		t.Fatalf("named: block 3 %t, block 4 %t; want true, false", named(3), named(4))
	}
}

func TestScenarioC2(t *testing.T) {
	for lookahead, want := range map[int]int{2: 2, 4: 2, 6: 3} {
		p := pool(t, Config{Blocks: 8, BlockTokens: 4})
		s := p.NewSequence(Hash{})
		if _, _, _, err := s.Begin(ids(0, 3), 3); err != nil {
			t.Fatal(err)
		}
		if err := s.Grow(3 + lookahead); err != nil {
			t.Fatal(err)
		}
		wantInt(t, "blocks", len(s.Table()), want)
	}
}

// TestScenarioC3: Quire computes the last token alone where others compute the last block.
func TestScenarioC3(t *testing.T) {
	p := pool(t, Config{Blocks: 20, PrefixCache: true})
	s, _ := start(t, p, Hash{}, ids(0, 17))
	_, cached := start(t, p, Hash{}, ids(0, 17))
	wantInt(t, "17 tokens again", cached, 16)
	s.Release()

	prompt := ids(1, 48)
	a, _ := start(t, p, Hash{}, prompt)
	// While somebody holds the last block it is copied.
	b := p.NewSequence(Hash{})
	wantInt(t, "lookup", b.Lookup(prompt), 47)
	cached, cow, hasCow, err := b.Begin(prompt, 48)
	if err != nil {
		t.Fatal(err)
	}
	wantInt(t, "fully cached", cached, 47)
	if !hasCow || cow.From != a.Table()[2] || cow.To != b.Table()[2] || cow.From == cow.To {
		t.Fatalf("copy %v %t: want the last block of %v to that of %v", cow, hasCow, a.Table(), b.Table())
	}
	b.Publish(prompt)
	p.EndStep()
	a.Release()
	b.Release()
	// Nobody holds it: it is taken as it is, and no block more than the prompt has is needed.
	free := p.Free()
	c := p.NewSequence(Hash{})
	cached, _, hasCow, err = c.Begin(prompt, 48)
	if err != nil || hasCow {
		t.Fatalf("copy %t, error %v: want neither", hasCow, err)
	}
	wantInt(t, "fully cached, unheld", cached, 47)
	wantInt(t, "blocks taken", free-p.Free(), 3)
}

// TestTwins: of two equal prompts in one step, one is computed.
func TestTwins(t *testing.T) {
	p := pool(t, Config{Blocks: 20, PrefixCache: true})
	prompt := ids(0, 100)
	begin := func() (*Sequence, int) {
		s := p.NewSequence(Hash{})
		cached, _, hasCow, err := s.Begin(prompt, len(prompt))
		if err != nil || hasCow {
			t.Fatalf("copy %t, error %v: want neither", hasCow, err)
		}
		s.Publish(prompt)
		return s, cached
	}
	a, cached := begin()
	wantInt(t, "first", cached, 0)
	b, cached := begin()
	wantInt(t, "twin", cached, 96)
	if !a.Followed() || b.Followed() {
		t.Fatalf("followed: %t, %t; want true, false", a.Followed(), b.Followed())
	}
	p.EndStep()
	if a.Followed() {
		t.Fatal("still followed after the step")
	}
	// A prompt of whole blocks: the twin computes the last one itself, since it is not there yet.
	prompt = ids(1, 96)
	begin()
	_, cached = begin()
	wantInt(t, "twin of whole blocks", cached, 80)
	p.EndStep()
}

// TestScenarioC5: charged with what the window holds at most, alone and beside layers that see all.
func TestScenarioC5(t *testing.T) {
	swa := pool(t, Config{Blocks: 77, Window: 64, PrefixCache: true})
	wantInt(t, "window's charge", swa.Charge(512, 128), 13)
	// 77 blocks in two groups. With fewer than 64 both cannot keep the whole prompt.
	hybrid := groups(t, Config{Blocks: 40, PrefixCache: true}, Config{Blocks: 37, Window: 64})
	wantInt(t, "both", hybrid.Charge(512, 128), 45)
	small := groups(t, Config{Blocks: 4}, Config{Blocks: 73, Window: 64})
	if small.Fits(256) {
		t.Fatal("16 blocks fit a group of 4")
	}
	refused := small.NewSequence(Hash{})
	if refused.HasRoom(ids(0, 256), 128, 0, nil) {
		t.Fatal("there is room for 16 blocks in a group of 4")
	}
	if _, _, err := refused.Begin(ids(0, 256), nil); !errors.Is(err, ErrNoBlocks) {
		t.Fatalf("got %v", err)
	}
	wantInt(t, "blocks taken by who was refused", small.Stats().Referenced+small.Windowed().Stats().Referenced, 0)

	prompt := ids(0, 512)
	both := hybrid.NewSequence(Hash{})
	if !both.HasRoom(prompt, 128, 0, nil) {
		t.Fatal("45 blocks have no room among 77")
	}
	if _, _, err := both.Begin(prompt, nil); err != nil {
		t.Fatal(err)
	}
	wantInt(t, "full blocks from the start", hybrid.Stats().Referenced, 32)
	held := 0
	for n := 128; n <= 512; n += 128 {
		both.Slide(n - 128)
		if err := both.Grow(n); err != nil {
			t.Fatal(err)
		}
		both.Publish(prompt[:n])
		hybrid.EndStep()
		held = max(held, hybrid.Windowed().Stats().Referenced)
	}
	wantInt(t, "windowed blocks at most", held, 12) // the prompt's steps are aligned: 13 covers those that are not
	wantInt(t, "full blocks at the end", hybrid.Stats().Referenced, 32)
	wantInt(t, "first windowed entry", int(both.Windowed()[0]), int(NoBlock))

	// The charge is real: run the prompt and watch.
	tokens, most := ids(0, 512), 0
	s := swa.NewSequence(Hash{})
	for n := 128; n <= 512; n += 128 {
		if n == 128 {
			if _, _, _, err := s.Begin(tokens, n); err != nil {
				t.Fatal(err)
			}
		} else {
			s.ReleaseBehind(n - 128 - 64 + 1)
			if err := s.Grow(n); err != nil {
				t.Fatal(err)
			}
		}
		s.Publish(tokens[:n])
		swa.EndStep()
		most = max(most, swa.Stats().Referenced)
	}
	if most > 13 {
		t.Fatalf("held %d blocks, charged 13", most)
	}
	wantInt(t, "table entries", len(s.Table()), 32)
	wantInt(t, "first entry", int(s.Table()[0]), int(NoBlock))
}

// TestScenarioC6: scratch blocks are reused before cached ones, and the cached tail still hits, in a group
// beside another as in a pool alone.
func TestScenarioC6(t *testing.T) {
	p := pool(t, Config{Blocks: 8, BlockTokens: 4, Window: 8, PrefixCache: true})
	tokens := ids(0, 18)
	s, _ := start(t, p, Hash{}, tokens)
	s.ReleaseBehind(18 - 8) // blocks 0 and 1 are behind
	s.Release()             // 4 (scratch), 3, 2
	wantIDs(t, "free", p.freeOrder(), 4, 5, 6, 7, 1, 0, 3, 2)
	r, cached := start(t, p, Hash{}, tokens)
	wantInt(t, "hit", cached, 16)
	wantIDs(t, "only the tail is held", r.Table(), NoBlock, NoBlock, 2, 3, 4)

	g := groups(t, Config{Blocks: 8, BlockTokens: 4, PrefixCache: true}, Config{Blocks: 8, Window: 8})
	both := g.NewSequence(Hash{})
	if _, _, err := both.Begin(tokens, nil); err != nil {
		t.Fatal(err)
	}
	if err := both.Grow(18); err != nil {
		t.Fatal(err)
	}
	both.Publish(tokens)
	g.EndStep()
	both.Slide(17)
	both.Release()
	wantIDs(t, "windowed free", g.Windowed().freeOrder(), 4, 5, 6, 7, 1, 0, 3, 2)
	again := g.NewSequence(Hash{})
	wantInt(t, "hit of both", again.Lookup(tokens), 16)
	if _, _, err := again.Begin(tokens, nil); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, "only the tail is held of the windowed", again.Windowed(), NoBlock, NoBlock, 2, 3, 4)
	wantIDs(t, "all is held of the full", again.Table(), 0, 1, 2, 3, 4)
	again.Release()
	// What the second group has lost is no hit, whatever the first has.
	w := g.Windowed().NewSequence(Hash{})
	if _, _, _, err := w.Begin(ids(1, 32), 32); err != nil {
		t.Fatal(err)
	}
	w.Release()
	late := g.NewSequence(Hash{})
	wantInt(t, "hit without the window's tail", late.Lookup(tokens), 0)
}

func groups(t *testing.T, first, windowed Config) *Groups {
	t.Helper()
	if first.BlockTokens == 0 {
		first.BlockTokens = 16
	}
	g, err := NewGroups(first, windowed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Audit(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func TestScenarioC7(t *testing.T) {
	p := pool(t, Config{Blocks: 10, PrefixCache: true})
	s, _ := start(t, p, Hash{}, ids(0, 48))
	if p.ResetCache() {
		t.Fatal("reset while a block is referenced")
	}
	r, cached := start(t, p, Hash{}, ids(0, 49))
	wantInt(t, "hit after a refused reset", cached, 48)
	s.Release()
	r.Release()
	if !p.ResetCache() {
		t.Fatal("reset refused with nothing referenced")
	}
	_, cached = start(t, p, Hash{}, ids(0, 49))
	wantInt(t, "hit after the reset", cached, 0)
}

func TestScenarioC9(t *testing.T) {
	p := pool(t, Config{Blocks: 40, PrefixCache: true})
	tokens := ids(0, 100)
	s, _ := start(t, p, Hash{}, tokens)
	for i := range 200 {
		tokens = append(tokens, int32(i))
		if err := s.Grow(len(tokens)); err != nil {
			t.Fatal(err)
		}
		s.Publish(tokens)
		p.EndStep()
	}
	s.Release()
	_, cached := start(t, p, Hash{}, tokens)
	wantInt(t, "tokens to compute", len(tokens)-cached, 12)
}

func TestScenarioI3(t *testing.T) {
	p := pool(t, Config{Blocks: 20, BlockTokens: 4, PrefixCache: true})
	tokens := ids(0, 6)
	s, _ := start(t, p, Hash{}, tokens)
	// Six drafts would fill blocks 1 and 2: none may be named.
	if err := s.Grow(12); err != nil {
		t.Fatal(err)
	}
	s.Publish(tokens)
	p.EndStep()
	wantInt(t, "named before verification", p.index.n, 1)
	// One is accepted.
	tokens = append(tokens, 600)
	s.Truncate(len(tokens))
	wantInt(t, "blocks after the rollback", len(s.Table()), 2)
	tokens = append(tokens, 700)
	if err := s.Grow(8); err != nil {
		t.Fatal(err)
	}
	s.Publish(tokens)
	p.EndStep()
	if want := Hashes(nil, Hash{}, tokens, 4); !slices.Equal(s.Hashes(), want) {
		t.Fatalf("hashes %v, want those of the verified tokens %v", s.Hashes(), want)
	}
	defer func() {
		if recover() == nil {
			t.Fatal("Truncate below published tokens went through")
		}
	}()
	s.Truncate(7)
}

// TestDuplicatesEnd: of equal blocks one survives release, and counts as used then.
func TestDuplicatesEnd(t *testing.T) {
	p := pool(t, Config{Blocks: 6, BlockTokens: 4, PrefixCache: true})
	begin := func() *Sequence {
		s := p.NewSequence(Hash{})
		s.SetReadable(0)
		if _, _, _, err := s.Begin(ids(0, 8), 8); err != nil {
			t.Fatal(err)
		}
		s.Publish(ids(0, 8))
		p.EndStep()
		return s
	}
	a, b := begin(), begin()               // 0 1 and 2 3
	c, _ := start(t, p, Hash{}, ids(1, 4)) // 4
	a.Release()
	wantInt(t, "cached while b holds the same", p.Stats().Cached, 0)
	b.Release()
	c.Release()
	wantIDs(t, "free", p.freeOrder(), 0, 1, 5, 3, 2, 4)
	d := begin() // 0 1 again
	d.Release()
	wantIDs(t, "the survivors were used last", p.cached.order(p.blocks), 4, 3, 2)
}

// TestTruncateForgetsHashes of tokens that were looked up and then given up.
func TestTruncateForgetsHashes(t *testing.T) {
	p := pool(t, Config{Blocks: 6, BlockTokens: 4, PrefixCache: true})
	s := p.NewSequence(Hash{})
	if _, _, _, err := s.Begin(ids(0, 12), 6); err != nil {
		t.Fatal(err)
	}
	s.Publish(ids(0, 6))
	s.Truncate(6)
	tokens := concat(ids(0, 6), ids(1, 6))
	if err := s.Grow(12); err != nil {
		t.Fatal(err)
	}
	s.Publish(tokens)
	if want := Hashes(nil, Hash{}, tokens, 4); !slices.Equal(s.Hashes(), want) {
		t.Fatalf("hashes %v, want %v", s.Hashes(), want)
	}
	p.EndStep()
}
