package grammar

import (
	"bytes"
	"fmt"
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

// A Vocabulary is a model's tokens laid out as a trie, which makes the common beginnings of tokens
// be looked at once. It is immutable; make one for each model.
type Vocabulary struct {
	size    int // ids in a mask
	ends    []int32
	tokens  [][]byte // nil for an id that no text has
	spelled [256]bool

	// The trie's nodes in the order of a depth-first walk. The node at i reads byte char[i] after
	// its parent, which is the nearest node before it of depth[i]-1; skip[i] is the first node
	// that is not below it. Tokens that end there are ids[first[i]:first[i+1]].
	char  []byte
	depth []uint16
	skip  []int32
	first []int32
	ids   []int32
	deep  int
}

// maxTokenBytes bounds a token: no tokenizer's vocabulary comes near, and depths are 16 bits.
const maxTokenBytes = 4096

// NewVocabulary lays out the tokens for masks of size bits, which must be at least t.Size(): models
// may have logits for ids beyond their tokenizer's. It takes tens of milliseconds for 50,000
// tokens.
func NewVocabulary(t Tokens, size int) (*Vocabulary, error) {
	if size < t.Size() {
		return nil, fmt.Errorf("grammar: masks of %d bits for a vocabulary of %d tokens", size, t.Size())
	}
	v := &Vocabulary{size: size, ends: slices.Clone(t.EOGs()), tokens: make([][]byte, size)}
	if len(v.ends) == 0 {
		return nil, fmt.Errorf("%w: the vocabulary has no token that ends a text", ErrUnsupported)
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

	var last []byte
	var open []int32 // the nodes on the way to last
	for _, id := range order {
		text := v.tokens[id]
		common := 0
		for common < len(last) && common < len(text) && last[common] == text[common] {
			common++
		}
		v.close(open[common:])
		open = open[:common]
		for i := common; i < len(text); i++ {
			open = append(open, int32(len(v.char)))
			v.char = append(v.char, text[i])
			v.depth = append(v.depth, uint16(i))
			v.skip = append(v.skip, 0)
			v.first = append(v.first, int32(len(v.ids)))
		}
		v.ids = append(v.ids, id)
		v.deep = max(v.deep, len(text))
		last = text
	}
	v.close(open)
	v.first = append(v.first, int32(len(v.ids)))
	return v, nil
}

func (v *Vocabulary) close(nodes []int32) {
	for _, n := range nodes {
		v.skip[n] = int32(len(v.char))
	}
}

// Words is the length of a mask.
func (v *Vocabulary) Words() int { return (v.size + 31) / 32 }

// Size is the number of ids that a mask speaks of.
func (v *Vocabulary) Size() int { return v.size }

func (v *Vocabulary) isEnd(id int32) bool { return slices.Contains(v.ends, id) }
