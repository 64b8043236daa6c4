package tiny

import _ "embed"

// Name is the model's id.
const Name = "tiny"

//go:embed tiny.gguf
var file []byte

// GGUF returns the model file. The caller must not change it.
func GGUF() []byte { return file }
