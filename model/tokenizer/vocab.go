package tokenizer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrUnsupported is wrapped by the error of [New] for a vocabulary that is well formed but of a kind
// that this package does not cut exactly.
var ErrUnsupported = errors.New("tokenizer: unsupported")

// Limits of a vocabulary; a file beyond them is damaged or hostile.
const (
	maxTokens     = 1 << 20
	maxMerges     = 4 << 20
	maxTokenBytes = 1 << 12
)

// Token types as GGUF numbers them.
const (
	typeNormal      = 1
	typeUnknown     = 2
	typeControl     = 3
	typeUserDefined = 4
	typeUnused      = 5
	typeByte        = 6
)

// Vocab is a vocabulary as a GGUF file describes it.
type Vocab struct {
	Model  string   // "gpt2": byte-level BPE
	Pre    string   // the pattern that splits text into words: "smollm", "gpt-2", "llama-bpe", "qwen2", ...
	Tokens []string // each token's spelling in the byte-level alphabet; control tokens are spelled plainly
	Types  []int32  // GGUF token types, one for each token; nil: all are normal
	Merges []string // "left right", most important first

	BOS, EOS, EOT, Unknown, Pad int32 // -1: none

	AddBOS, AddEOS bool
	// IgnoreMerges means that a word that is itself a token becomes that token whatever the merges
	// say, as Llama 3 wants.
	IgnoreMerges bool
}

// Tokenizer encodes and decodes with one vocabulary.
type Tokenizer struct {
	vocab   Vocab
	split   splitter
	compose bool // normalise to NFC first

	pieces []string         // id → the bytes it stands for
	ids    map[string]int32 // spelling → id
	words  map[string]int32 // bytes → id, for IgnoreMerges only
	bytes  [256]int32       // byte → id, -1: none
	merges map[uint64]merge
	end    []int32 // ids that end a generation, ascending

	control *matcher       // control and user-defined tokens
	always  *matcher       // those user-defined tokens alone that plain text becomes
	plain   map[int32]bool // the ids of always

	longest int // bytes of the longest piece
	pool    encoders
}

// merge says what a pair of tokens becomes. A lower rank is applied first.
type merge struct {
	rank uint32
	id   int32
}

func pair(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

// endNames are the spellings of control tokens that end a turn or a text. Files name one of them as
// EOS, but models trained for chat stop with others too.
var endNames = []string{"<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "</s>", "<eos>", "<end_of_turn>", "<|endofturn|>"}

// isMarker reports whether a token's spelling is that of a control token. Some files call tokens that
// begin and end turns user-defined, which would let plain text spell them.
func isMarker(text string) bool {
	return slices.Contains(endNames, text) || text == "<bos>" || text == "<s>" || strings.HasPrefix(text, "<start_of_") || strings.HasPrefix(text, "<end_of_") ||
		len(text) > 4 && (strings.HasPrefix(text, "<|") && strings.HasSuffix(text, "|>") || strings.HasPrefix(text, "<\uff5c") && strings.HasSuffix(text, "\uff5c>")) ||
		strings.HasPrefix(text, "[") && strings.HasSuffix(text, "INST]")
}

// New checks v and builds its tokenizer. v's slices must not be changed afterwards.
func New(v Vocab) (*Tokenizer, error) {
	if v.Model != "gpt2" {
		return nil, fmt.Errorf("%w: vocabulary model %q, only byte-level BPE (\"gpt2\") is known", ErrUnsupported, v.Model)
	}
	pattern, ok := patterns[v.Pre]
	if !ok {
		return nil, fmt.Errorf("%w: pre-tokenizer %q, known are %s", ErrUnsupported, v.Pre, strings.Join(Patterns(), ", "))
	}
	if len(v.Tokens) == 0 || len(v.Tokens) > maxTokens {
		return nil, fmt.Errorf("tokenizer: %d tokens, the limit is %d", len(v.Tokens), maxTokens)
	}
	if v.Types != nil && len(v.Types) != len(v.Tokens) {
		return nil, fmt.Errorf("tokenizer: %d token types for %d tokens", len(v.Types), len(v.Tokens))
	}
	if len(v.Merges) > maxMerges {
		return nil, fmt.Errorf("tokenizer: %d merges, the limit is %d", len(v.Merges), maxMerges)
	}
	for _, s := range []struct {
		name string
		id   int32
	}{{"BOS", v.BOS}, {"EOS", v.EOS}, {"EOT", v.EOT}, {"unknown", v.Unknown}, {"padding", v.Pad}} {
		if s.id < -1 || int(s.id) >= len(v.Tokens) {
			return nil, fmt.Errorf("tokenizer: %s token %d of %d", s.name, s.id, len(v.Tokens))
		}
	}
	t := &Tokenizer{vocab: v, split: pattern.split, compose: pattern.compose, pieces: make([]string, len(v.Tokens)), ids: make(map[string]int32, len(v.Tokens))}
	if err := t.addTokens(); err != nil {
		return nil, err
	}
	if err := t.addMerges(); err != nil {
		return nil, err
	}
	t.addEnds()
	return t, nil
}

// addTokens fills pieces, ids, words, bytes and the matchers.
func (t *Tokenizer) addTokens() error {
	v := &t.vocab
	if v.IgnoreMerges {
		t.words = make(map[string]int32, len(v.Tokens))
	}
	for i := range t.bytes {
		t.bytes[i] = -1
	}
	control, always := newMatcher(), newMatcher()
	t.plain = map[int32]bool{}
	for i, text := range v.Tokens {
		id := int32(i)
		if len(text) > maxTokenBytes {
			return fmt.Errorf("tokenizer: token %d has %d bytes, the limit is %d", i, len(text), maxTokenBytes)
		}
		// When two tokens are spelled alike, the first one is what encoding gives.
		if _, twice := t.ids[text]; !twice {
			t.ids[text] = id
		}
		switch kind := t.kind(id); kind {
		case typeControl, typeUserDefined:
			t.pieces[i] = text
			control.add(text, id)
			if kind == typeUserDefined && !isMarker(text) {
				always.add(text, id)
				t.plain[id] = true
			}
		case typeByte:
			var b byte
			if _, err := fmt.Sscanf(text, "<0x%02X>", &b); err != nil {
				return fmt.Errorf("tokenizer: token %d, %q, is of type byte", i, text)
			}
			t.pieces[i] = string([]byte{b})
			if t.bytes[b] < 0 {
				t.bytes[b] = id
			}
		default:
			piece := bytesOf(text)
			t.pieces[i] = piece
			if kind != typeNormal {
				continue
			}
			if len(piece) == 1 && t.bytes[piece[0]] < 0 {
				t.bytes[piece[0]] = id
			}
			if _, twice := t.words[piece]; v.IgnoreMerges && !twice {
				t.words[piece] = id
			}
		}
	}
	// Some vocabularies lack bytes that their training text never held, such as control characters.
	// One that lacks plain text is damaged.
	for b := byte(' '); b <= '~'; b++ {
		if t.bytes[b] < 0 {
			return fmt.Errorf("tokenizer: no token for byte 0x%02X, %q", b, b)
		}
	}
	for _, piece := range t.pieces {
		t.longest = max(t.longest, len(piece))
	}
	t.control, t.always = control, always
	return nil
}

// addMerges resolves the merges to ids.
func (t *Tokenizer) addMerges() error {
	t.merges = make(map[uint64]merge, len(t.vocab.Merges))
	for rank, text := range t.vocab.Merges {
		left, right, ok := strings.Cut(text, " ")
		if !ok || left == "" || right == "" || strings.Contains(right, " ") {
			return fmt.Errorf("tokenizer: merge %d, %q, is not a pair", rank, text)
		}
		var ids [3]int32
		for i, s := range []string{left, right, left + right} {
			if ids[i], ok = t.ids[s]; !ok {
				return fmt.Errorf("tokenizer: merge %d, %q: %q is no token", rank, text, s)
			}
		}
		key := pair(ids[0], ids[1])
		if _, twice := t.merges[key]; !twice {
			t.merges[key] = merge{uint32(rank), ids[2]}
		}
	}
	return nil
}

func (t *Tokenizer) addEnds() {
	for _, id := range []int32{t.vocab.EOS, t.vocab.EOT} {
		if id >= 0 {
			t.end = append(t.end, id)
		}
	}
	for _, name := range endNames {
		if id, ok := t.ids[name]; ok && t.kind(id) == typeControl {
			t.end = append(t.end, id)
		}
	}
	slices.Sort(t.end)
	t.end = slices.Compact(t.end)
}

func (t *Tokenizer) kind(id int32) int32 {
	if t.vocab.Types == nil {
		return typeNormal
	}
	return t.vocab.Types[id]
}

// Size is the number of tokens.
func (t *Tokenizer) Size() int { return len(t.pieces) }

// MinTokens is the fewest tokens that a text of so many bytes can become if the vocabulary has a
// token for every byte of it. A front door can refuse by it what is too long, without encoding it.
func (t *Tokenizer) MinTokens(textBytes int) int {
	if t.compose {
		textBytes /= 3 // the most that composing characters can save
	}
	return (textBytes + t.longest - 1) / t.longest
}

// BOS is the token that begins a text, -1 if there is none.
func (t *Tokenizer) BOS() int32 { return t.vocab.BOS }

// EOS is the token that ends a text or turn, -1 if there is none.
func (t *Tokenizer) EOS() int32 { return t.vocab.EOS }

// AddBOS says whether a prompt should begin with [Tokenizer.BOS]. Encode does not add it: a chat
// template may have written it already.
func (t *Tokenizer) AddBOS() bool { return t.vocab.AddBOS && t.vocab.BOS >= 0 }

// IsEOG reports whether id ends a generation.
func (t *Tokenizer) IsEOG(id int32) bool { return slices.Contains(t.end, id) }

// EOGs returns the ids that end a generation, ascending. The caller must not change them.
func (t *Tokenizer) EOGs() []int32 { return t.end }

// IsSpecial reports whether id is a control token, which plain text never becomes.
func (t *Tokenizer) IsSpecial(id int32) bool {
	return id >= 0 && int(id) < len(t.pieces) && t.kind(id) == typeControl
}

// TokenID finds a token by its spelling in the vocabulary.
func (t *Tokenizer) TokenID(text string) (int32, bool) {
	id, ok := t.ids[text]
	return id, ok
}

// Text returns the spelling of id in the vocabulary, empty for an id outside it.
func (t *Tokenizer) Text(id int32) string {
	if id < 0 || int(id) >= len(t.pieces) {
		return ""
	}
	return t.vocab.Tokens[id]
}
