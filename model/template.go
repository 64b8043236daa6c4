package model

import (
	"fmt"

	"github.com/quire-serve/quire/model/chat"
	"github.com/quire-serve/quire/model/gguf"
	"github.com/quire-serve/quire/model/tokenizer"
)

// newTemplate compiles the chat template of a file; nil if it has none. An error costs the model its
// chats alone.
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
