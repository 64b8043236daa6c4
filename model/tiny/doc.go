// Package tiny is the language model inside the binary.
//
// It exists so that Quire answers in readable English before anything is downloaded, and so that
// tests have a real model at hand: a tokenizer, a chat template and a Llama of 1.8 million weights in
// a GGUF file of under two megabytes. It knows small talk, simple facts, little stories, and how
// Quire works; for the rest it mostly says that it does not know.
//
// The file is made by the scripts in train/ from text that the makers of Quire wrote; README.md
// tells how. testdata/golden.json holds what PyTorch generates from the weights as the file stores
// them, for tests of everything that runs models.
//
// It must not import anything of ours: it is only bytes.
package tiny
