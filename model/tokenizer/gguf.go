package tokenizer

import (
	"fmt"

	"github.com/quire-serve/quire/model/gguf"
)

// FromGGUF builds the tokenizer that a model file describes. Nothing of the file is referenced
// afterwards.
func FromGGUF(f *gguf.File) (*Tokenizer, error) {
	const prefix = "tokenizer.ggml."
	var v Vocab
	v.Model, _ = f.String(prefix + "model")
	v.Pre, _ = f.String(prefix + "pre")
	if v.Model == "gpt2" && v.Pre == "" {
		return nil, fmt.Errorf("%w: the file does not name its pre-tokenizer (%spre)", ErrUnsupported, prefix)
	}
	// Before the arrays are copied out of the file.
	for key, limit := range map[string]int{"tokens": maxTokens, "token_type": maxTokens, "merges": maxMerges} {
		if n, ok := f.Len(prefix + key); ok && n > limit {
			return nil, fmt.Errorf("tokenizer: %s%s has %d elements, the limit is %d", prefix, key, n, limit)
		}
	}
	v.Tokens, _ = f.Strings(prefix + "tokens")
	v.Merges, _ = f.Strings(prefix + "merges")
	if types, ok := f.Ints(prefix + "token_type"); ok {
		v.Types = make([]int32, len(types))
		for i, kind := range types {
			v.Types[i] = int32(kind)
		}
	}
	for _, s := range []struct {
		key string
		id  *int32
	}{{"bos", &v.BOS}, {"eos", &v.EOS}, {"eot", &v.EOT}, {"unknown", &v.Unknown}, {"padding", &v.Pad}} {
		*s.id = -1
		if id, ok := f.Uint(prefix + s.key + "_token_id"); ok {
			if id >= uint64(len(v.Tokens)) {
				return nil, fmt.Errorf("tokenizer: %s%s_token_id is %d, there are %d tokens", prefix, s.key, id, len(v.Tokens))
			}
			*s.id = int32(id)
		}
	}
	// Llama 3's files may leave these out; its tokenizer has both.
	v.IgnoreMerges = v.Pre == "llama-bpe" || v.Pre == "llama3" || v.Pre == "llama-v3"
	v.AddBOS = v.IgnoreMerges
	if add, ok := f.Bool(prefix + "add_bos_token"); ok {
		v.AddBOS = add
	}
	v.AddEOS, _ = f.Bool(prefix + "add_eos_token")
	return New(v)
}
