package tokenizer

import (
	"fmt"
	"math"

	"github.com/quire-serve/quire/model/gguf"
)

// FromGGUF builds the tokenizer that a model file describes. Nothing of the file is referenced
// afterwards.
func FromGGUF(f *gguf.File) (*Tokenizer, error) {
	r := reader{f: f}
	v := Vocab{
		Model: required(&r, "model", "string", f.String),
		BOS:   r.id("bos_token_id"), EOS: r.id("eos_token_id"), EOT: r.id("eot_token_id"), Unknown: r.id("unknown_token_id"), Pad: r.id("padding_token_id"),
	}
	if v.Model == "gpt2" {
		v.Pre = required(&r, "pre", "string", f.String)
	}
	// Checked before the arrays are copied out of the file.
	r.limit("tokens", maxTokens)
	r.limit("token_type", maxTokens)
	r.limit("merges", maxMerges)
	if r.err != nil {
		return nil, r.err
	}
	v.Tokens = required(&r, "tokens", "array of strings", f.Strings)
	v.Merges = required(&r, "merges", "array of strings", f.Strings)
	if f.Has(prefix + "token_type") {
		for _, kind := range required(&r, "token_type", "array of integers", f.Ints) {
			v.Types = append(v.Types, int32(kind))
		}
	}
	// The files of Llama 3 may leave out what is the same for all of them.
	v.IgnoreMerges = v.Pre == "llama-bpe" || v.Pre == "llama3" || v.Pre == "llama-v3"
	v.AddBOS = v.IgnoreMerges
	if f.Has(prefix + "add_bos_token") {
		v.AddBOS = required(&r, "add_bos_token", "boolean", f.Bool)
	}
	if f.Has(prefix + "add_eos_token") {
		v.AddEOS = required(&r, "add_eos_token", "boolean", f.Bool)
	}
	if r.err != nil && v.Model == "gpt2" {
		return nil, r.err
	}
	return New(v)
}

const prefix = "tokenizer.ggml."

// reader keeps the first error.
type reader struct {
	f   *gguf.File
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("tokenizer: metadata key "+format, args...)
	}
}

// required reads a key that must be there with the type that get wants.
func required[T any](r *reader, key, want string, get func(string) (T, bool)) T {
	v, ok := get(prefix + key)
	if !ok {
		r.fail("%q is missing or no %s", prefix+key, want)
	}
	return v
}

func (r *reader) limit(key string, limit int) {
	if n, ok := r.f.Len(prefix + key); ok && n > limit {
		r.fail("%q has %d elements, the limit is %d", prefix+key, n, limit)
	}
}

// id reads a token id; -1 if there is none, which some writers spell as the largest uint32.
func (r *reader) id(key string) int32 {
	if !r.f.Has(prefix + key) {
		return -1
	}
	id := required(r, key, "token id", r.f.Uint)
	if id == math.MaxUint32 {
		return -1
	}
	if id > math.MaxInt32 {
		r.fail("%q is %d", prefix+key, id)
	}
	return int32(id)
}
