// Package gguf reads and writes GGUF model files, versions 2 and 3, and turns their quantised
// tensors into float32.
//
// A model file comes from anywhere, so the reader trusts nothing in it. Every length is checked
// against the bytes that are left before anything is done with it; arithmetic on sizes is checked
// for overflow; counts, names and nesting have limits. Reading a file costs memory in proportion
// to the number of its keys and tensors, never to a length that it claims: strings and arrays stay
// in the mapping until a getter asks for them. A bad file gives an error that names the place; no
// input panics.
//
// The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only little-endian files
// are read, which is what everybody writes.
//
// The package knows element types (package device) and nothing else of ours.
package gguf
