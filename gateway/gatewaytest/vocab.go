package gatewaytest

import (
	"sync"

	"github.com/quire-serve/quire/model/tokenizer"
)

// Special tokens of the test vocabulary. Ids 0 to 255 are the bytes.
const (
	EndOfText int32 = 256
	TurnStart int32 = 257
	TurnEnd   int32 = 258
	Size            = 259
)

// ChatTemplate is a template in the vocabulary's special tokens.
const ChatTemplate = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

var vocab = sync.OnceValue(func() *tokenizer.Tokenizer {
	v := tokenizer.Vocab{
		Model: "gpt2", Pre: "gpt-2", BOS: -1, EOS: EndOfText, EOT: TurnEnd, Unknown: -1, Pad: -1,
		Tokens: make([]string, Size), Types: make([]int32, Size),
	}
	// The byte-level alphabet: printable Latin-1 bytes spell themselves, the rest follow from U+0100.
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE) {
			r = next
			next++
		}
		v.Tokens[b], v.Types[b] = string(r), 1
	}
	for id, text := range map[int32]string{EndOfText: "<|endoftext|>", TurnStart: "<|im_start|>", TurnEnd: "<|im_end|>"} {
		v.Tokens[id], v.Types[id] = text, 3
	}
	t, err := tokenizer.New(v)
	if err != nil {
		panic(err)
	}
	return t
})

// Tokenizer returns a vocabulary of one token a byte, and three special tokens. It has no merges, so
// that every text is as many tokens as it has bytes.
func Tokenizer() *tokenizer.Tokenizer { return vocab() }

// Text returns the tokens of s.
func Text(s string) []int32 {
	ids := make([]int32, len(s))
	for i := range len(s) {
		ids[i] = int32(s[i])
	}
	return ids
}
