package grammar

import (
	"bytes"
	"fmt"
	"math"
	"slices"
)

// Tokens is what a grammar asks of a tokenizer; *tokenizer.Tokenizer has it.
type Tokens interface {
	// Size is the number of ids; Bytes is what an id stands for in the text.
	Size() int
	Bytes(id int32) []byte
	IsSpecial(id int32) bool
	// EOGs are the ids that end a generation.
	EOGs() []int32
}

// A Vocabulary is a model's tokens laid out for masks. It is immutable; make one for each model.
type Vocabulary struct {
	size    int // ids in a mask
	ends    []int32
	tokens  [][]byte // nil for an id that no text has
	spelled [256]bool

	all trie
	// Most tokens are short runs of plain characters, which inside a string may all follow, or all
	// up to a length. plain[n] is the mask of those of at most n bytes; rest has the other tokens.
	plain [][]uint32
	rest  trie
}

// A trie has its nodes in the order of a depth-first walk.
type trie struct {
	nodes []trieNode
	ids   []int32
	deep  int
}

// A trieNode reads char after its parent, the nearest node before it of one depth less. skip is the
// first node that is not below it. The tokens that end there are ids[first:first+count].
type trieNode struct {
	skip, first int32
	depth       uint16
	char, count uint8
}

const (
	// maxTokenBytes bounds a token: no tokenizer's vocabulary comes near, and depths are 16 bits.
	maxTokenBytes = 4096
	// maxPlain bounds the tokens that Vocabulary.plain has.
	maxPlain = 32
)

// isPlain: the printable ASCII characters that stand for themselves in a JSON string.
func isPlain(c byte) bool { return c >= ' ' && c <= '~' && c != '"' && c != '\\' }

// NewVocabulary lays out the tokens for masks of size bits, which must be at least t.Size(): models
// may have logits for ids beyond their tokenizer's. It takes tens of milliseconds for 50,000
// tokens.
func NewVocabulary(t Tokens, size int) (*Vocabulary, error) {
	if size < t.Size() {
		return nil, fmt.Errorf("grammar: masks of %d bits for a vocabulary of %d tokens", size, t.Size())
	}
	v := &Vocabulary{size: size, ends: slices.Clone(t.EOGs()), tokens: make([][]byte, size), plain: make([][]uint32, maxPlain+1)}
	if len(v.ends) == 0 {
		return nil, fmt.Errorf("%w: the vocabulary has no token that ends a text", ErrUnsupported)
	}
	for n := range v.plain {
		v.plain[n] = make([]uint32, v.Words())
	}
	order := make([]int32, 0, t.Size())
	for id := range int32(t.Size()) {
		text := t.Bytes(id)
		if t.IsSpecial(id) || slices.Contains(v.ends, id) || len(text) == 0 || len(text) > maxTokenBytes {
			continue
		}
		v.tokens[id] = text
		order = append(order, id)
		if len(text) == 1 {
			v.spelled[text[0]] = true
		}
	}
	slices.SortStableFunc(order, func(a, b int32) int { return bytes.Compare(v.tokens[a], v.tokens[b]) })
	var err error
	if v.all, err = newTrie(v.tokens, order); err != nil {
		return nil, err
	}
	var others []int32
	for _, id := range order {
		text := v.tokens[id]
		if len(text) > maxPlain || slices.ContainsFunc(text, func(c byte) bool { return !isPlain(c) }) {
			others = append(others, id)
			continue
		}
		for n := len(text); n <= maxPlain; n++ {
			set(v.plain[n], id)
		}
	}
	v.rest, err = newTrie(v.tokens, others)
	return v, err
}

func set(mask []uint32, id int32) { mask[id>>5] |= 1 << (id & 31) }

// newTrie lays out the ids, which are in the order of their texts.
func newTrie(texts [][]byte, order []int32) (trie, error) {
	t := trie{ids: order}
	var last []byte
	var open []int32 // the nodes on the way to last
	closeAll := func(nodes []int32) {
		for _, n := range nodes {
			t.nodes[n].skip = int32(len(t.nodes))
		}
	}
	for i, id := range order {
		text := texts[id]
		common := 0
		for common < len(last) && common < len(text) && last[common] == text[common] {
			common++
		}
		closeAll(open[common:])
		open = open[:common]
		for j := common; j < len(text); j++ {
			open = append(open, int32(len(t.nodes)))
			t.nodes = append(t.nodes, trieNode{char: text[j], depth: uint16(j), first: int32(i)})
		}
		n := &t.nodes[open[len(open)-1]]
		if n.count == math.MaxUint8 {
			return trie{}, fmt.Errorf("%w: more than %d tokens are %q", ErrUnsupported, n.count, text)
		}
		n.count++
		t.deep = max(t.deep, len(text))
		last = text
	}
	closeAll(open)
	return t, nil
}

// Words is the length of a mask.
func (v *Vocabulary) Words() int { return (v.size + 31) / 32 }

// Size is the number of ids that a mask speaks of.
func (v *Vocabulary) Size() int { return v.size }

func (v *Vocabulary) isEnd(id int32) bool { return slices.Contains(v.ends, id) }
