package tokenizer

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/quire-serve/quire/model/gguf"
	"github.com/quire-serve/quire/model/tiny"
)

func tinyTokenizer(t *testing.T) *Tokenizer {
	t.Helper()
	f, err := gguf.Parse(tiny.GGUF())
	if err != nil {
		t.Fatal(err)
	}
	tok, err := FromGGUF(f)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestParityTiny(t *testing.T) { checkParity(t, tinyTokenizer(t), "tiny") }

// metadata is what a file with the vocabulary v says of its tokenizer.
func metadata(v Vocab, more ...gguf.KeyValue) []gguf.KeyValue {
	kvs := []gguf.KeyValue{{Key: "tokenizer.ggml.model", Value: v.Model}, {Key: "tokenizer.ggml.pre", Value: v.Pre}, {Key: "tokenizer.ggml.tokens", Value: v.Tokens},
		{Key: "tokenizer.ggml.token_type", Value: v.Types}, {Key: "tokenizer.ggml.merges", Value: v.Merges}}
	for _, kv := range more {
		kvs = slices.DeleteFunc(kvs, func(old gguf.KeyValue) bool { return old.Key == kv.Key })
		if kv.Value != nil {
			kvs = append(kvs, kv)
		}
	}
	return kvs
}

func fromMetadata(t *testing.T, kvs []gguf.KeyValue) (*Tokenizer, error) {
	t.Helper()
	var file bytes.Buffer
	if err := gguf.Write(&file, kvs, nil); err != nil {
		t.Fatal(err)
	}
	f, err := gguf.Parse(file.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return FromGGUF(f)
}

func TestFromGGUF(t *testing.T) {
	v := small()
	tok, err := fromMetadata(t, metadata(v, gguf.KeyValue{Key: "tokenizer.ggml.eos_token_id", Value: uint32(256)}, gguf.KeyValue{Key: "tokenizer.ggml.eot_token_id", Value: uint32(257)},
		gguf.KeyValue{Key: "tokenizer.ggml.bos_token_id", Value: uint32(1<<32 - 1)}))
	if err != nil {
		t.Fatal(err)
	}
	if tok.EOS() != 256 || tok.BOS() != -1 || tok.AddBOS() || !slices.Equal(tok.EOGs(), []int32{256, 257}) || tok.Size() != len(v.Tokens) {
		t.Errorf("EOS %d, BOS %d, added %t, ends %v, %d tokens", tok.EOS(), tok.BOS(), tok.AddBOS(), tok.EOGs(), tok.Size())
	}
	if got, want := tok.Encode(nil, "abc<e>x", true), mustNew(t, v).Encode(nil, "abc<e>x", true); !slices.Equal(got, want) {
		t.Errorf("Encode = %v, want %v", got, want)
	}

	// Llama 3 takes whole words first and begins with BOS, unless the file says otherwise.
	llama := metadata(v, gguf.KeyValue{Key: "tokenizer.ggml.pre", Value: "llama-bpe"}, gguf.KeyValue{Key: "tokenizer.ggml.bos_token_id", Value: uint32(256)})
	if tok, err = fromMetadata(t, llama); err != nil {
		t.Fatal(err)
	}
	abcd, _ := tok.TokenID("abcd")
	if got := tok.Encode(nil, "abcd", false); !tok.AddBOS() || !slices.Equal(got, []int32{abcd}) {
		t.Errorf("with llama-bpe: BOS added %t, Encode(abcd) = %v", tok.AddBOS(), got)
	}
	if tok, err = fromMetadata(t, append(llama, gguf.KeyValue{Key: "tokenizer.ggml.add_bos_token", Value: false})); err != nil || tok.AddBOS() {
		t.Errorf("BOS is added although the file says no, %v", err)
	}
}

func TestFromGGUFRefuses(t *testing.T) {
	for _, c := range []struct {
		name, want  string
		unsupported bool
		kv          gguf.KeyValue
	}{
		{"model", `vocabulary model "llama"`, true, gguf.KeyValue{Key: "tokenizer.ggml.model", Value: "llama"}},
		{"pattern", `pre-tokenizer "viking"`, true, gguf.KeyValue{Key: "tokenizer.ggml.pre", Value: "viking"}},
		{"no pattern", "\"tokenizer.ggml.pre\" is missing or no string", false, gguf.KeyValue{Key: "tokenizer.ggml.pre"}},
		{"no tokens", "\"tokenizer.ggml.tokens\" is missing", false, gguf.KeyValue{Key: "tokenizer.ggml.tokens"}},
		{"eos", "EOS token 263 of 263", false, gguf.KeyValue{Key: "tokenizer.ggml.eos_token_id", Value: uint32(263)}},
		{"huge eos", "\"tokenizer.ggml.eos_token_id\" is 4294967294", false, gguf.KeyValue{Key: "tokenizer.ggml.eos_token_id", Value: uint32(1<<32 - 2)}},
		{"eos of another type", "eos_token_id\" is missing or no token id", false, gguf.KeyValue{Key: "tokenizer.ggml.eos_token_id", Value: "two"}},
		{"flag of another type", "add_bos_token\" is missing or no boolean", false, gguf.KeyValue{Key: "tokenizer.ggml.add_bos_token", Value: "yes"}},
	} {
		_, err := fromMetadata(t, metadata(small(), c.kv))
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrUnsupported) != c.unsupported {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
}
