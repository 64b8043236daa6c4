package tokenizer

import (
	"hash/maphash"
	"strings"
	"sync"

	"golang.org/x/text/unicode/norm"
)

// Encode appends the tokens of text to dst. Control tokens spelled in text are recognised only when
// special is true; user-defined tokens, which are ordinary text with a token of their own, always.
// BOS and EOS are not added. A byte for which the vocabulary has no token is left out, as Hugging Face
// tokenizers leave it out: SmolLM2's has none for eight control characters, nor for bytes that begin
// only characters that Unicode has not assigned. Its unknown token would be a control token.
func (t *Tokenizer) Encode(dst []int32, text string, special bool) []int32 {
	m := t.always
	if special {
		m = t.control
	}
	return t.encode(dst, text, m, nil)
}

// Spellings lists the sequences of tokens that spell word: at the beginning of a text, and behind a blank.
// Control tokens spelled in it are recognised. It is empty if the vocabulary has no tokens for word.
func (t *Tokenizer) Spellings(word string) [][]int32 {
	bare := strings.TrimLeft(word, " ")
	if bare == "" {
		bare = word // nothing but blanks
	}
	var list [][]int32
	for _, text := range []string{bare, " " + bare} {
		if ids := t.Encode(nil, text, true); len(ids) > 0 {
			list = append(list, ids)
		}
	}
	return list
}

// EncodeMarked is Encode for a text of which only the parts in marked, byte offsets [from, to) that
// ascend and do not touch, may spell control tokens: a token counts if all of its bytes lie in one
// part. What lies between two special tokens is cut into words as one text, wherever parts begin and
// end in it.
func (t *Tokenizer) EncodeMarked(dst []int32, text string, marked [][2]int) []int32 {
	next := 0 // the first part that may still hold a token
	return t.encode(dst, text, t.control, func(id int32, start, end int) bool {
		for next < len(marked) && marked[next][1] <= start {
			next++
		}
		return t.plain[id] || next < len(marked) && marked[next][0] <= start && end <= marked[next][1]
	})
}

// encode looks for those tokens of m that are allowed.
func (t *Tokenizer) encode(dst []int32, text string, m *matcher, allowed func(id int32, start, end int) bool) []int32 {
	e := t.pool.get()
	defer t.pool.put(e)
	for at := 0; at < len(text); {
		start, end, id := m.find(text, at, allowed)
		dst = t.encodePlain(e, dst, text[at:start])
		if id >= 0 {
			dst = append(dst, id)
		}
		at = end
	}
	return dst
}

// encodePlain encodes text that holds no special tokens.
func (t *Tokenizer) encodePlain(e *encoder, dst []int32, text string) []int32 {
	if t.compose && !norm.NFC.IsNormalString(text) {
		text = norm.NFC.String(text)
	}
	for text != "" {
		n := t.split(text)
		dst = t.encodeWord(e, dst, text[:n])
		text = text[n:]
	}
	return dst
}

// Sizes of an encoder's word cache. Longer words are rare and are merged each time.
const (
	cacheWords  = 1 << 12
	cacheBytes  = 23
	cacheTokens = 9
)

// encoder is the scratch memory of one encoding, with a cache of words seen before. The cache is
// direct-mapped: a word that hashes to a taken place replaces what was there.
type encoder struct {
	seed  maphash.Seed
	cache [cacheWords]cached

	symbols []symbol
	heap    []candidate
}

type cached struct {
	length, count uint8
	word          [cacheBytes]byte
	ids           [cacheTokens]int32
}

// encoders hands out encoders; the garbage collector takes back those that are idle.
type encoders struct{ pool sync.Pool }

func (p *encoders) get() *encoder {
	if e, ok := p.pool.Get().(*encoder); ok {
		return e
	}
	return &encoder{seed: maphash.MakeSeed()}
}

func (p *encoders) put(e *encoder) {
	// One enormous word must not pin its memory for ever.
	if cap(e.symbols) > 1<<16 {
		e.symbols, e.heap = nil, nil
	}
	p.pool.Put(e)
}

func (t *Tokenizer) encodeWord(e *encoder, dst []int32, word string) []int32 {
	if len(word) == 1 && t.bytes[word[0]] >= 0 {
		return append(dst, t.bytes[word[0]])
	}
	if len(word) > cacheBytes {
		return t.mergeWord(e, dst, word)
	}
	slot := &e.cache[maphash.String(e.seed, word)%cacheWords]
	if int(slot.length) == len(word) && string(slot.word[:slot.length]) == word {
		return append(dst, slot.ids[:slot.count]...)
	}
	begin := len(dst)
	dst = t.mergeWord(e, dst, word)
	if ids := dst[begin:]; len(ids) <= cacheTokens {
		slot.length, slot.count = uint8(len(word)), uint8(len(ids))
		copy(slot.word[:], word)
		copy(slot.ids[:], ids)
	}
	return dst
}

// symbol is a token of a word that is being merged, in a doubly linked list over the word.
type symbol struct {
	id         int32 // -1: swallowed by the symbol to its left
	prev, next int32 // -1: none
}

// candidate is a pair of neighbours that could be merged; it is stale once either has changed.
type candidate struct {
	order uint64 // rank, then position: the smallest is merged first, ties from left to right
	pair  uint64
	id    int32
}

// mergeWord appends the tokens of one word. Trying every pair after each merge would cost the square
// of the word's length, which a long word without spaces makes unbearable; a heap of the pairs makes
// it n log n.
func (t *Tokenizer) mergeWord(e *encoder, dst []int32, word string) []int32 {
	if id, ok := t.words[word]; ok {
		return append(dst, id)
	}
	s, h := e.symbols[:0], e.heap[:0]
	for i := range len(word) {
		if id := t.bytes[word[i]]; id >= 0 {
			n := int32(len(s))
			s = append(s, symbol{id, n - 1, n + 1})
		}
	}
	if len(s) == 0 {
		return dst
	}
	s[len(s)-1].next = -1
	for i := range len(s) - 1 {
		h = t.consider(h, s, int32(i))
	}
	for len(h) > 0 {
		var c candidate
		c, h = pop(h)
		at := int32(uint32(c.order))
		left := &s[at]
		if left.id < 0 || left.next < 0 || pair(left.id, s[left.next].id) != c.pair {
			continue
		}
		right := &s[left.next]
		left.id, left.next = c.id, right.next
		right.id = -1
		if left.next >= 0 {
			s[left.next].prev = at
			h = t.consider(h, s, at)
		}
		if left.prev >= 0 {
			h = t.consider(h, s, left.prev)
		}
	}
	for i := int32(0); i >= 0; i = s[i].next {
		dst = append(dst, s[i].id)
	}
	e.symbols, e.heap = s, h
	return dst
}

// consider pushes the pair of symbol i and its right neighbour if they can be merged.
func (t *Tokenizer) consider(h []candidate, s []symbol, i int32) []candidate {
	key := pair(s[i].id, s[s[i].next].id)
	m, ok := t.merges[key]
	if !ok {
		return h
	}
	return push(h, candidate{uint64(m.rank)<<32 | uint64(uint32(i)), key, m.id})
}

func push(h []candidate, c candidate) []candidate {
	h = append(h, c)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if h[up].order <= c.order {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = c
	return h
}

func pop(h []candidate) (candidate, []candidate) {
	top, last := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	i := 0
	for {
		down := 2*i + 1
		if down >= len(h) {
			break
		}
		if down+1 < len(h) && h[down+1].order < h[down].order {
			down++
		}
		if last.order <= h[down].order {
			break
		}
		h[i] = h[down]
		i = down
	}
	if len(h) > 0 {
		h[i] = last
	}
	return top, h
}
