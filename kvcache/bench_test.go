package kvcache

import "testing"

// benchPool is the cache of an 8B model on one large GPU: 28,672 blocks of 16 tokens.
func benchPool(b *testing.B) *Pool {
	b.Helper()
	p, err := NewPool(Config{Blocks: 28_672, BlockTokens: 16, PrefixCache: true})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	return p
}

// fill runs requests through the pool until every block is cached.
func fill(b *testing.B, p *Pool) {
	b.Helper()
	for i := range p.cfg.Blocks / 512 {
		s, _ := start(b, p, Hash{}, ids(100+i, 8192))
		s.Release()
	}
	if p.Stats().Cached != p.cfg.Blocks {
		b.Fatalf("%+v", p.Stats())
	}
}

// BenchmarkAllocate is one block taken from a full cache, and given back.
func BenchmarkAllocate(b *testing.B) {
	p := benchPool(b)
	fill(b, p)
	s := p.NewSequence(Hash{})
	for b.Loop() {
		if err := s.Grow(16); err != nil {
			b.Fatal(err)
		}
		s.Truncate(0)
	}
}

// BenchmarkAdmitHit8k is the lookup, admission and release of an 8,192-token prompt, fully cached,
// whose hashes came with the request.
func BenchmarkAdmitHit8k(b *testing.B) {
	p := benchPool(b)
	fill(b, p)
	prompt := ids(150, 8192)
	hashes := Hashes(nil, Hash{}, prompt, 16)
	for b.Loop() {
		s := p.NewSequence(Hash{})
		s.SetHashes(hashes)
		if cached := s.Lookup(prompt); cached != 8191 || s.Need(8192) != 512 {
			b.Fatal(cached)
		}
		if _, _, _, err := s.Begin(prompt, 8192); err != nil {
			b.Fatal(err)
		}
		s.Publish(prompt)
		p.EndStep()
		s.Release()
	}
}

// BenchmarkAdmitMiss8k is the same of a prompt that no block is cached of, in a pool full of cached
// blocks: 512 are evicted and 512 named.
func BenchmarkAdmitMiss8k(b *testing.B) {
	p := benchPool(b)
	fill(b, p)
	const prompts = 64 // more than fit
	var prompt [prompts][]int32
	var hashes [prompts][]Hash
	for i := range prompts {
		prompt[i] = ids(200+i, 8192)
		hashes[i] = Hashes(nil, Hash{}, prompt[i], 16)
	}
	i := 0
	for b.Loop() {
		s := p.NewSequence(Hash{})
		s.SetHashes(hashes[i])
		if cached := s.Lookup(prompt[i]); cached != 0 {
			b.Fatal(cached)
		}
		if _, _, _, err := s.Begin(prompt[i], 8192); err != nil {
			b.Fatal(err)
		}
		s.Publish(prompt[i])
		p.EndStep()
		s.Release()
		i = (i + 1) % prompts
	}
}

// BenchmarkDecodeStep256 is what the pool does in a step of 256 decoding requests.
func BenchmarkDecodeStep256(b *testing.B) {
	p := benchPool(b)
	const n, prompt = 256, 100
	var seqs [n]*Sequence
	var tokens [n][]int32
	for i := range n {
		tokens[i] = make([]int32, prompt, 1600)
		copy(tokens[i], ids(i, prompt))
		seqs[i], _ = start(b, p, Hash{}, tokens[i])
	}
	for b.Loop() {
		if len(tokens[0]) == cap(tokens[0]) { // at their end, all start again
			b.StopTimer()
			for i := range n {
				seqs[i].Release()
				tokens[i] = tokens[i][:prompt]
				seqs[i], _ = start(b, p, Hash{}, tokens[i])
			}
			b.StartTimer()
		}
		for i, s := range &seqs {
			tokens[i] = append(tokens[i], int32(len(tokens[i])))
			if err := s.Grow(len(tokens[i])); err != nil {
				b.Fatal(err)
			}
			s.Publish(tokens[i])
		}
		p.EndStep()
		if err := p.Check(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup8k(b *testing.B) {
	p := benchPool(b)
	fill(b, p)
	prompt := ids(150, 8192)
	hashes := Hashes(nil, Hash{}, prompt, 16)
	s := p.NewSequence(Hash{})
	s.SetHashes(hashes)
	for b.Loop() {
		p.version++ // nothing remembered
		if s.Lookup(prompt) != 8191 {
			b.Fatal("miss")
		}
	}
}

func BenchmarkFork(b *testing.B) {
	p := benchPool(b)
	s, _ := start(b, p, Hash{}, ids(0, 1000))
	for b.Loop() {
		child, _, _, err := s.Fork()
		if err != nil {
			b.Fatal(err)
		}
		child.Release()
	}
}

func BenchmarkCheck(b *testing.B) {
	p := benchPool(b)
	for b.Loop() {
		if err := p.Check(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAudit(b *testing.B) {
	p := benchPool(b)
	fill(b, p)
	for b.Loop() {
		if err := p.Audit(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSteadyPathAllocatesNothing: admission, growth, naming, eviction and release, once warm.
func TestSteadyPathAllocatesNothing(t *testing.T) {
	p := pool(t, Config{Blocks: 64, PrefixCache: true, Events: true, ReportEvictions: true})
	var evicted []Eviction
	round := 0
	prompts := make([][]int32, 40)
	for i := range prompts {
		prompts[i] = ids(i, 300)
	}
	if n := testing.AllocsPerRun(200, func() {
		tokens := prompts[round%len(prompts)]
		round++
		s := p.NewSequence(Hash{})
		s.Lookup(tokens[:256])
		if _, _, _, err := s.Begin(tokens[:256], 256); err != nil {
			t.Fatal(err)
		}
		for n := 257; n <= 300; n++ {
			if err := s.Grow(n); err != nil {
				t.Fatal(err)
			}
			s.Publish(tokens[:n])
			evicted = p.Evicted(evicted[:0])
			p.EndStep()
		}
		s.ReleaseAfter(p.EndStep())
		p.Completed(p.step)
		if err := p.Check(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}
