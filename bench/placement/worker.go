package main

import (
	"container/list"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/scheduler/batch"
	"github.com/quire-serve/quire/scheduler/prefix"
)

// model is what workers are like.
type model struct {
	workers, blocks, maxSequences, maxBatchTokens int
	// A step takes baseUS, its prompt tokens at tokensPerS, and decodeUS for each running sequence.
	baseUS, decodeUS, tokensPerS int64
	// Messages between leader and workers take networkUS.
	networkUS int64
}

// defaultModel is near to a model of 8 B parameters on one H100: 512k tokens of KV, 20,000 prompt
// tokens a second.
var defaultModel = model{
	workers: 8, blocks: 1000, maxSequences: 128, maxBatchTokens: 8192,
	baseUS: 8000, decodeUS: 50, tokensPerS: 20_000, networkUS: 500,
}

// worker is a simulated engine: continuous batching with chunked prefill, and a paged KV cache whose
// blocks are shared as soon as they are scheduled and evicted least recently used, ends of chains
// first.
type worker struct {
	*model
	id        string
	cacheName prefix.Worker
	// waiting are accepted, prefilling and decoding run.
	waiting, prefilling, decoding []*sequence
	cache                         map[kvcache.Hash]*block
	idle                          *list.List // Blocks that nobody uses, next to be evicted in front.
	used                          int        // Blocks in use.
	news                          []news
	index, sequence               uint64
	stepping                      bool
	hit, asked                    int64 // Tokens.
}

type sequence struct {
	*traced
	n    int
	left int // Prompt tokens to compute, then output tokens to generate.
	held []*block
	own  int // Blocks without a name.
}

// news is what the cache took up or lost, in order.
type news struct {
	hash   kvcache.Hash
	stored bool
}

type block struct {
	hash kvcache.Hash
	refs int
	at   *list.Element
}

func newWorker(m *model, id string, cacheName prefix.Worker) *worker {
	return &worker{model: m, id: id, cacheName: cacheName, cache: map[kvcache.Hash]*block{}, idle: list.New()}
}

// admit starts the sequences that there is room for, in order.
func (w *worker) admit() {
	for len(w.waiting) > 0 && len(w.prefilling)+len(w.decoding) < w.maxSequences {
		s := w.waiting[0]
		matched := 0
		for matched < len(s.hashes) && w.cache[s.hashes[matched]] != nil {
			matched++
		}
		total := (s.input + s.output + blockTokens - 1) / blockTokens
		fresh := total - matched
		kept := 0 // Matched ones that are idle are used again, not evicted.
		for _, h := range s.hashes[:matched] {
			if w.cache[h].refs == 0 {
				kept++
			}
		}
		if w.used+kept+fresh > w.blocks {
			return
		}
		w.waiting = w.waiting[1:]
		for _, h := range s.hashes[:matched] {
			w.hold(s, w.cache[h])
		}
		w.used += fresh
		for w.used+w.idle.Len() > w.blocks {
			b := w.idle.Remove(w.idle.Front()).(*block)
			delete(w.cache, b.hash)
			w.news = append(w.news, news{b.hash, false})
		}
		w.used -= len(s.hashes) - matched // hold counts those with a name.
		for _, h := range s.hashes[matched:] {
			b := &block{hash: h}
			w.cache[h] = b
			w.news = append(w.news, news{h, true})
			w.hold(s, b)
		}
		s.own = fresh - (len(s.hashes) - matched)
		w.asked += int64(s.input)
		cached := min(matched*blockTokens, s.input-1)
		w.hit += int64(cached)
		s.left = s.input - cached
		w.prefilling = append(w.prefilling, s)
	}
}

func (w *worker) hold(s *sequence, b *block) {
	if b.refs == 0 {
		w.used++
		if b.at != nil {
			w.idle.Remove(b.at)
			b.at = nil
		}
	}
	b.refs++
	s.held = append(s.held, b)
}

func (w *worker) release(s *sequence) {
	w.used -= s.own
	for n := len(s.held) - 1; n >= 0; n-- {
		b := s.held[n]
		if b.refs--; b.refs == 0 {
			w.used--
			b.at = w.idle.PushBack(b)
		}
	}
}

// step plans a step; it returns its duration and what to do at its end, which returns the sequences
// that got their first token. 0 is nothing to do.
func (w *worker) step() (us int64, end func() []*sequence) {
	w.admit()
	budget := w.maxBatchTokens - len(w.decoding)
	type chunk struct {
		s *sequence
		n int
	}
	var chunks []chunk
	tokens := 0
	for _, s := range w.prefilling {
		n := min(s.left, budget-tokens)
		if n <= 0 {
			break
		}
		chunks = append(chunks, chunk{s, n})
		tokens += n
	}
	if tokens+len(w.decoding) == 0 {
		return 0, nil
	}
	us = w.baseUS + int64(tokens)*1_000_000/w.tokensPerS + int64(len(w.decoding))*w.decodeUS
	return us, func() (first []*sequence) {
		kept := w.decoding[:0]
		for _, s := range w.decoding {
			if s.left--; s.left > 0 {
				kept = append(kept, s)
			} else {
				w.release(s)
			}
		}
		w.decoding = kept
		for _, c := range chunks {
			if c.s.left -= c.n; c.s.left > 0 {
				continue
			}
			first = append(first, c.s)
			w.prefilling = w.prefilling[1:]
			if c.s.left = c.s.output - 1; c.s.left > 0 {
				w.decoding = append(w.decoding, c.s)
			} else {
				w.release(c.s)
			}
		}
		return first
	}
}

// load is the next heartbeat.
func (w *worker) load() batch.Load {
	w.sequence++
	out := batch.Load{
		Sequence: w.sequence, Running: len(w.prefilling) + len(w.decoding), Waiting: len(w.waiting),
		FreeBlocks: w.blocks - w.used, DispatchIndex: w.index,
	}
	for _, s := range w.waiting {
		out.PendingPrefill += int64(s.input)
	}
	for _, s := range w.prefilling {
		out.PendingPrefill += int64(s.left)
	}
	return out
}
