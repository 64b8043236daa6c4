package kvcache

import (
	"crypto/sha256"
	"math/rand/v2"
	"testing"
)

// TestHashFormat pins what nodes and files of different builds must agree on.
func TestHashFormat(t *testing.T) {
	message := make([]byte, 55)
	parent := Root([]byte("salt"), []byte("adapter"))
	copy(message, parent[:])
	tokens := make([]int32, 16)
	for i := range tokens {
		tokens[i] = int32(i * 31_337 % (1 << packedBits))
		for bit := range packedBits {
			if tokens[i]>>bit&1 == 1 {
				at := i*packedBits + bit
				message[16+at/8] |= 1 << (at % 8)
			}
		}
	}
	sum := sha256.Sum256(message)
	if want := Hash(sum[:16]); ChildHash(parent, tokens) != want {
		t.Errorf("ChildHash is %v, the documented message gives %v", ChildHash(parent, tokens), want)
	}
	for name, c := range map[string]struct {
		got  Hash
		want string
	}{
		"root":  {parent, "7ac4beb5c323f91169b932c947304aa8"},
		"block": {ChildHash(Hash{}, []int32{1, 2, 3}), "389a1260198a75d2648645d30bb218cc"},
		"wide":  {ChildHash(Hash{}, []int32{1, 1 << 20, -1}), "2ff64854f129dc1100482ac03a50c134"},
		"keyed": {ChildHashKeyed(Hash{}, []int32{1, 2, 3}, []byte("key")), "ec5fb6c08b52b1f874654e4c2df46441"},
		"long":  {ChildHash(Hash{}, make([]int32, 100)), "f31881af40b34c6ce5ac9037fd6a0400"},
	} {
		if c.got.String() != c.want {
			t.Errorf("%s: %v, want %s", name, c.got, c.want)
		}
	}
}

// TestHashesDiffer: messages of every form and length stay apart.
func TestHashesDiffer(t *testing.T) {
	seen := map[Hash]string{}
	add := func(what string, h Hash) {
		if other, ok := seen[h]; ok {
			t.Errorf("%s and %s have one hash", what, other)
		}
		seen[h] = what
	}
	for _, n := range []int{1, 2, 3, 15, 16, 17, 32, 63, 64, 65, 128, 129, 256} {
		zero := make([]int32, n)
		add("zeros", ChildHash(Hash{}, zero))
		add("zeros, keyed", ChildHashKeyed(Hash{}, zero, []byte{0}))
		for i := range n {
			for _, v := range []int32{1, 1 << 18, 1 << 19, 1 << 30, -1} {
				tokens := make([]int32, n)
				tokens[i] = v
				add("one token", ChildHash(Hash{}, tokens))
			}
		}
	}
	if ChildHashKeyed(Hash{}, []int32{1}, nil) != ChildHash(Hash{}, []int32{1}) {
		t.Error("an empty key is a key")
	}
}

func TestHashAllocates(t *testing.T) {
	tokens := make([]int32, 8192)
	dst := make([]Hash, 0, 512)
	if n := testing.AllocsPerRun(10, func() { dst = Hashes(dst[:0], Hash{}, tokens, 16) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHash8k(b *testing.B) {
	tokens := make([]int32, 8192)
	for i := range tokens {
		tokens[i] = rand.Int32N(152_000)
	}
	dst := make([]Hash, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		dst = Hashes(dst[:0], Hash{}, tokens, 16)
	}
}
