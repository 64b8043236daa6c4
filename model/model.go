package model

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model/chat"
	"github.com/quire-serve/quire/model/gguf"
	"github.com/quire-serve/quire/model/tokenizer"
)

// Spec is an open model file: all that is known of a model without its weights on a device.
type Spec struct {
	ID   string // the name that clients use; the file's name unless the caller sets another
	Path string // empty for a model in memory
	// Digest tells files apart: hexadecimal SHA-256 over the length, every key and tensor
	// description, and the ends of each tensor's data. It reads little of a file of any size, and
	// so guards against mixing models up, not against malice.
	Digest    string
	Config    Config
	Tokenizer *tokenizer.Tokenizer
	Chat      *chat.Template // nil if the file has no template, or none that can be used
	NoChat    error          // what is wrong with the file's template; the model serves all but chats
	File      *gguf.File
}

// Model is a model on a device, whose memory its weights are.
type Model struct {
	*Spec
	Program *device.Program
	// Context is how many tokens a sequence may hold: Config.ContextLength, or less if so loaded.
	Context int
}

// Open opens a GGUF file.
func Open(path string) (*Spec, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	s, err := newSpec(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s.ID = strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	s.Path = path
	return s, nil
}

// OpenBytes opens a GGUF file that lies in memory. data must stay as it is.
func OpenBytes(name string, data []byte) (*Spec, error) {
	f, err := gguf.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s, err := newSpec(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s.ID = name
	return s, nil
}

func newSpec(f *gguf.File) (*Spec, error) {
	config, err := readConfig(f)
	if err != nil {
		return nil, err
	}
	tok, err := tokenizer.FromGGUF(f)
	if err != nil {
		return nil, err
	}
	if tok.Size() != config.Vocab {
		return nil, fmt.Errorf("tokenizer.ggml.tokens has %d tokens, but tensor %q has %d rows", tok.Size(), "token_embd.weight", config.Vocab)
	}
	s := &Spec{Digest: digest(f), Config: config, Tokenizer: tok, File: f}
	s.Chat, s.NoChat = newTemplate(f, tok)
	return s, nil
}

// Close unmaps the file. Models loaded from it keep running.
func (s *Spec) Close() error { return s.File.Close() }

// digest is [Spec.Digest].
func digest(f *gguf.File) string {
	const end = 512
	h := sha256.New()
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(f.Size())))
	h.Write(f.Head())
	for i := range f.Tensors {
		t := &f.Tensors[i]
		h.Write(t.Data[:min(end, len(t.Data))])
		h.Write(t.Data[max(0, len(t.Data)-end):])
		f.Drop(t)
	}
	return hex.EncodeToString(h.Sum(nil))
}
