package model

import (
	"testing"

	"github.com/quire-serve/quire/cpu"
)

// FuzzOpen opens arbitrary bytes as a model and, where they are one, loads it.
func FuzzOpen(f *testing.F) {
	whole := newFixture("llama").bytes(f)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add(newFixture("qwen2").bytes(f))
	dev, err := cpu.Open(cpu.Options{Path: "go", Threads: 1, MemoryBytes: 64 << 20})
	if err != nil {
		f.Fatal(err)
	}
	defer dev.Close()
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := OpenBytes("fuzz", data)
		if err != nil {
			return
		}
		defer s.Close()
		if s.Tokenizer.Size() != s.Config.Vocab {
			t.Fatalf("%d tokens, %d rows", s.Tokenizer.Size(), s.Config.Vocab)
		}
		if m, err := s.Load(dev, LoadOptions{MaxContext: 64}); err == nil && m.Context > 64 {
			t.Fatalf("a context of %d tokens", m.Context)
		}
	})
}
