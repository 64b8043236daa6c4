package model

import (
	"fmt"
	"math"
	"strings"

	"github.com/quire-serve/quire/model/chat"
	"github.com/quire-serve/quire/model/gguf"
	"github.com/quire-serve/quire/model/tokenizer"
)

// newTokenizer reads the vocabulary of a file.
func newTokenizer(f *gguf.File) (*tokenizer.Tokenizer, error) {
	const prefix = "tokenizer.ggml."
	var err error
	missing := func(key, want string) {
		if err == nil {
			err = fmt.Errorf("metadata key %q is missing or no %s", prefix+key, want)
		}
	}
	str := func(key string) string {
		v, ok := f.String(prefix + key)
		if !ok {
			missing(key, "string")
		}
		return v
	}
	strs := func(key string) []string {
		v, ok := f.Strings(prefix + key)
		if !ok {
			missing(key, "array of strings")
		}
		return v
	}
	id := func(key string) int32 {
		if !f.Has(prefix + key) {
			return -1
		}
		v, ok := f.Uint(prefix + key)
		if ok && v == math.MaxUint32 { // how some writers say "none"
			return -1
		}
		if !ok || v > math.MaxInt32 {
			missing(key, "token id")
		}
		return int32(v)
	}
	flag := func(key string, fallback bool) bool {
		if !f.Has(prefix + key) {
			return fallback
		}
		v, ok := f.Bool(prefix + key)
		if !ok {
			missing(key, "boolean")
		}
		return v
	}
	v := tokenizer.Vocab{
		Model:   str("model"),
		Pre:     str("pre"),
		Tokens:  strs("tokens"),
		Merges:  strs("merges"),
		BOS:     id("bos_token_id"),
		EOS:     id("eos_token_id"),
		EOT:     id("eot_token_id"),
		Unknown: id("unknown_token_id"),
		Pad:     id("padding_token_id"),
	}
	if f.Has(prefix + "token_type") {
		types, ok := f.Ints(prefix + "token_type")
		if !ok {
			missing("token_type", "array of integers")
		}
		v.Types = make([]int32, len(types))
		for i, t := range types {
			if t != int64(int32(t)) {
				missing("token_type", "array of token types")
			}
			v.Types[i] = int32(t)
		}
	}
	// The files of Llama 3 leave out what is the same for all of them.
	llama3 := v.Pre == "llama-bpe" || strings.HasPrefix(v.Pre, "llama3") || v.Pre == "llama-v3"
	v.IgnoreMerges = llama3
	v.AddBOS = flag("add_bos_token", llama3)
	v.AddEOS = flag("add_eos_token", false)
	if err != nil {
		return nil, err
	}
	return tokenizer.New(v)
}

// newTemplate compiles the chat template of a file; nil if it has none.
func newTemplate(f *gguf.File, tok *tokenizer.Tokenizer) (*chat.Template, error) {
	const key = "tokenizer.chat_template"
	if !f.Has(key) {
		return nil, nil
	}
	source, ok := f.String(key)
	if !ok {
		return nil, fmt.Errorf("metadata key %q is of type %s; a string is wanted", key, f.TypeOf(key))
	}
	var s chat.Settings
	if id := tok.BOS(); id >= 0 {
		s.BOS = string(tok.Bytes(id))
	}
	if id := tok.EOS(); id >= 0 {
		s.EOS = string(tok.Bytes(id))
	}
	t, err := chat.New(source, s)
	if err != nil {
		return nil, fmt.Errorf("metadata key %q: %w", key, err)
	}
	return t, nil
}
