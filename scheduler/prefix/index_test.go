package prefix

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/quire-serve/quire/kvcache"
)

// oracle is the index written down plainly.
type oracle map[Worker]map[kvcache.Medium]map[kvcache.Hash]bool

func (o oracle) add(number Worker) {
	o[number] = map[kvcache.Medium]map[kvcache.Hash]bool{kvcache.Device: {}, kvcache.Host: {}, kvcache.Disk: {}}
}

func (o oracle) match(hashes []kvcache.Hash) []Match {
	var out []Match
	for _, number := range slices.Sorted(maps.Keys(o)) {
		m := Match{Worker: number}
	chain:
		for _, h := range hashes {
			switch {
			case o[number][kvcache.Device][h]:
				m.Device++
			case o[number][kvcache.Host][h]:
				m.Host++
			case o[number][kvcache.Disk][h]:
				m.Disk++
			default:
				break chain
			}
		}
		if m.Blocks() > 0 {
			out = append(out, m)
		}
	}
	return out
}

func (o oracle) blocks() int64 {
	seen := map[kvcache.Hash]bool{}
	for _, media := range o {
		for _, hashes := range media {
			maps.Copy(seen, hashes)
		}
	}
	return int64(len(seen))
}

// chains are the prompts of a tree: every chain shares a beginning with others.
func chains(n int) [][]kvcache.Hash {
	var out [][]kvcache.Hash
	root := kvcache.Hashes(nil, kvcache.Root(nil, nil), make([]int32, 40), 2)
	for c := range n {
		shared := c * len(root) / n
		tokens := slices.Repeat([]int32{int32(c + 1)}, 2*(3+c*7%60))
		parent := kvcache.Root(nil, nil)
		if shared > 0 {
			parent = root[shared-1]
		}
		out = append(out, kvcache.Hashes(slices.Clone(root[:shared]), parent, tokens, 2))
	}
	return out
}

// check compares every chain's matches with the oracle's, and the books with the tables.
func check(t *rapid.T, x *Index, o oracle, prompts [][]kvcache.Hash) {
	for _, prompt := range prompts {
		got := x.Match(nil, prompt)
		slices.SortFunc(got, func(a, b Match) int { return int(a.Worker - b.Worker) })
		if want := o.match(prompt); !slices.Equal(got, want) {
			t.Fatalf("%d blocks match\n%v, want\n%v", len(prompt), got, want)
		}
	}
	refs := make([]uint32, len(x.sets.heads))
	held := make([][media]int64, len(x.seats))
	for n := range x.tables {
		used := 0
		for _, e := range x.tables[n].entries {
			if e.free() {
				continue
			}
			used++
			for medium, id := range e.holders {
				if id&setShared != 0 {
					refs[id&^setShared]++
				}
				x.eachHolder(id, func(seat int) { held[seat][medium]++ })
			}
		}
		if used != x.tables[n].used {
			t.Fatalf("table %d has %d entries, counts %d", n, used, x.tables[n].used)
		}
	}
	for n, want := range refs {
		if x.sets.heads[n].refs != want {
			t.Fatalf("set %d is referred to %d times, counts %d", n, want, x.sets.heads[n].refs)
		}
	}
	for n, want := range held {
		if x.seats[n].blocks != want {
			t.Fatalf("seat %d is named %v times, counts %v", n, want, x.seats[n].blocks)
		}
	}
}

// TestIndexAgreesWithOracle drives the index with random events of many workers and compares every
// answer with the plain oracle's.
func TestIndexAgreesWithOracle(t *testing.T) {
	prompts := chains(16)
	rapid.Check(t, func(t *rapid.T) {
		x, o := New(Settings{}), oracle{}
		x.stride = 1
		anyMedium := rapid.SampledFrom([]kvcache.Medium{kvcache.Device, kvcache.Device, kvcache.Host, kvcache.Disk})
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			numbers := slices.Sorted(maps.Keys(o))
			action := rapid.IntRange(0, 19).Draw(t, "action")
			if action < 3 || len(numbers) == 0 {
				for range rapid.SampledFrom([]int{1, 1, 1, 70}).Draw(t, "workers") {
					number, err := x.Add()
					if err != nil || o[number] != nil {
						t.Fatalf("added worker %d: %v", number, err)
					}
					o.add(number)
				}
				continue
			}
			number, medium := rapid.SampledFrom(numbers).Draw(t, "worker"), anyMedium.Draw(t, "medium")
			prompt := rapid.SampledFrom(prompts).Draw(t, "prompt")
			from := rapid.IntRange(0, len(prompt)).Draw(t, "from")
			part := prompt[from:rapid.IntRange(from, len(prompt)).Draw(t, "to")]
			if rapid.Bool().Draw(t, "whole") {
				part = prompt
			}
			switch {
			case action < 12:
				some := numbers[:1]
				if rapid.Bool().Draw(t, "all") {
					some = numbers
				}
				for _, number := range append(some, number) {
					x.Stored(number, medium, part)
					for _, h := range part {
						o[number][medium][h] = true
					}
				}
			case action < 16:
				x.Removed(number, medium, part)
				for _, h := range part {
					delete(o[number][medium], h)
				}
			case action == 16:
				x.Cleared(number, medium)
				clear(o[number][medium])
			case action == 17:
				x.Reset(number)
				o.add(number)
			default:
				x.Remove(number)
				delete(o, number)
			}
			check(t, x, o, prompts)
		}
		for range tables { // All that is dead goes in one round.
			x.sweepTable()
		}
		if s := x.Stats(); s.Blocks != o.blocks() || s.Dropped != 0 || x.deadSeats != 0 {
			t.Fatalf("%+v with %d dead seats; want %d blocks", s, x.deadSeats, o.blocks())
		}
	})
}

// TestStridesSeeWhatCachesHold: for caches that drop the ends of chains first, and move them down a
// tier, reading every eighth block tells the same as reading all.
func TestStridesSeeWhatCachesHold(t *testing.T) {
	prompts := chains(16)
	rapid.Check(t, func(t *rapid.T) {
		x, o := New(Settings{}), oracle{}
		for range rapid.IntRange(1, 20).Draw(t, "workers") {
			number, _ := x.Add()
			o.add(number)
			from := 0
			prompt := rapid.SampledFrom(prompts).Draw(t, "prompt")
			for medium := range kvcache.Medium(media) {
				to := rapid.IntRange(from, len(prompt)).Draw(t, "to")
				x.Stored(number, medium, prompt[from:to])
				for _, h := range prompt[from:to] {
					o[number][medium][h] = true
				}
				from = to
			}
		}
		check(t, x, o, prompts)
	})
}

// TestMemoryIsBounded: an index that is full forgets, never finds what is not there,
// and has room again when workers let go.
func TestMemoryIsBounded(t *testing.T) {
	for seed := range 3 {
		const limit = LeastBytes
		x, o := New(Settings{Bytes: limit}), oracle{}
		var added []Worker
		for range 100 {
			number, err := x.Add()
			if err != nil {
				t.Fatal(err)
			}
			o.add(number)
			added = append(added, number)
		}
		var prompts [][]kvcache.Hash
		for n := range 400 {
			tokens := slices.Repeat([]int32{int32(n)}, 200)
			prompts = append(prompts, kvcache.Hashes(nil, kvcache.Root(nil, nil), tokens, 1))
		}
		for n := range 1000 {
			r := random(1000*seed + n)
			number, medium, prompt := added[r%100], kvcache.Medium(r>>8%3), prompts[r>>16%400]
			part := prompt[:100+r>>32%100]
			if r>>60 < 12 {
				x.Stored(number, medium, part)
				for _, h := range part {
					o[number][medium][h] = true
				}
			} else {
				x.Removed(number, medium, part)
				for _, h := range part {
					delete(o[number][medium], h)
				}
			}
			if s := x.Stats(); s.Bytes > limit {
				t.Fatalf("seed %d: %d bytes, the limit is %d", seed, s.Bytes, limit)
			}
		}
		if x.Stats().Evicted == 0 {
			t.Fatalf("seed %d: nothing was evicted: %+v", seed, x.Stats())
		}
		for _, prompt := range prompts[:40] {
			want := map[Worker]Match{}
			for _, m := range o.match(prompt) {
				want[m.Worker] = m
			}
			for _, m := range x.Match(nil, prompt) {
				if m.Blocks() > want[m.Worker].Blocks() {
					t.Fatalf("seed %d: found %v, there is %v", seed, m, want[m.Worker])
				}
			}
		}
		for number := range o {
			x.Remove(number)
		}
		number, _ := x.Add()
		for range tables {
			x.Removed(number, kvcache.Device, prompts[0][:1])
		}
		x.Stored(number, kvcache.Device, prompts[0])
		if got := x.Match(nil, prompts[0]); len(got) != 1 || got[0].Device != 200 {
			t.Fatalf("seed %d: after all left: %v, want 200 blocks on worker %d", seed, got, number)
		}
	}
}

// TestWidening: bitmaps grow with the number of workers, within the limit too.
func TestWidening(t *testing.T) {
	x := New(Settings{Bytes: LeastBytes})
	prompt := kvcache.Hashes(nil, kvcache.Hash{}, make([]int32, 2000), 1)
	for n := range 3000 {
		number, err := x.Add()
		if err != nil {
			t.Fatal(err)
		}
		x.Stored(number, kvcache.Device, prompt[:1+n%len(prompt)])
		if s := x.Stats(); s.Bytes > LeastBytes {
			t.Fatalf("%d workers: %d bytes, the limit is %d", n, s.Bytes, int64(LeastBytes))
		}
	}
	for _, m := range x.Match(nil, prompt) {
		if want := int32(1 + m.Worker.Slot()%len(prompt)); m.Device > want {
			t.Errorf("worker %d holds %d blocks, found %d", m.Worker, want, m.Device)
		}
	}
	if x.Stats().Dropped == 0 {
		t.Error("3,000 workers with 2,000 different sets fit into 1 MiB")
	}
}

// TestRemovingIsCheap: a worker with many blocks is forgotten at once, and the entries go with the
// updates that follow.
func TestRemovingIsCheap(t *testing.T) {
	x := New(Settings{})
	one, _ := x.Add()
	two, _ := x.Add()
	long := kvcache.Hashes(nil, kvcache.Hash{}, make([]int32, 50_000), 1)
	x.Stored(one, kvcache.Device, long)
	x.Stored(two, kvcache.Device, long[:100])
	want := fmt.Sprint([]Match{{Worker: two, Device: 100}})
	x.Remove(one)
	if got := fmt.Sprint(x.Match(nil, long)); got != want {
		t.Errorf("after the first left: %s", got)
	}
	if x.Stats().Blocks != 50_000 {
		t.Errorf("%d blocks are left at once; removing went through the tables", x.Stats().Blocks)
	}
	x.Stored(one, kvcache.Device, long[:1]) // Too late.
	x.Reset(one)
	x.Cleared(one, kvcache.Device)
	x.Remove(one)
	if got := fmt.Sprint(x.Match(nil, long)); got != want {
		t.Errorf("after more was said of it: %s", got)
	}
	for range tables {
		x.Stored(two, kvcache.Host, long[:1])
	}
	if s := x.Stats(); s.Blocks != 100 || s.Sets != 0 {
		t.Errorf("after %d updates %+v; want the 100 blocks of one", tables, s)
	}
}

// TestWhatIsMatchedStays: prompts that are asked for again and again outlast any number of blocks that nobody
// asks for, those that were asked for once do not stay for ever, and the same calls evict the same.
func TestWhatIsMatchedStays(t *testing.T) {
	chain := func(n, length int) []kvcache.Hash {
		return kvcache.Hashes(nil, kvcache.Root(nil, nil), slices.Repeat([]int32{int32(n)}, length), 1)
	}
	run := func() (hot, cold int32, s Stats) {
		x := New(Settings{Bytes: LeastBytes})
		w, _ := x.Add()
		found := func(hashes []kvcache.Hash) int32 {
			if m := x.Match(nil, hashes); len(m) == 1 {
				return m[0].Blocks()
			}
			return 0
		}
		system, once := chain(-1, 1000), chain(-2, 1000)
		x.Stored(w, kvcache.Device, system)
		x.Stored(w, kvcache.Device, once)
		for n := range 2000 {
			x.Stored(w, kvcache.Device, chain(n, 100)) // 200,000 blocks, several times what there is room for.
			found(system)
			if n == 300 {
				found(once)
			}
			if s := x.Stats(); s.Bytes > LeastBytes {
				t.Fatalf("%d bytes, the limit is %d", s.Bytes, int64(LeastBytes))
			}
		}
		return found(system), found(once), x.Stats()
	}
	hot, cold, s := run()
	if hot != 1000 || cold != 0 {
		t.Errorf("of 1,000 blocks that are matched all the time %d are found, of those that were once %d", hot, cold)
	}
	if s.Evicted == 0 || s.Blocks < 10_000 {
		t.Errorf("%+v; a full index holds more than 10,000 blocks", s)
	}
	if _, _, again := run(); again != s {
		t.Errorf("the same calls: %+v and %+v", s, again)
	}
}
