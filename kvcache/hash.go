package kvcache

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// Hash names the content of a full block: its tokens, everything before them, and who may share it.
// The zero value means no hash.
type Hash [16]byte

// String is the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// words cuts the hash into two numbers, for the index.
func (h *Hash) words() (lo, hi uint64) {
	return binary.LittleEndian.Uint64(h[:8]), binary.LittleEndian.Uint64(h[8:])
}

const (
	// packedBits is the width of a token id in a hashed message. Sixteen ids of 19 bits, the parent
	// and the tag are 55 bytes: the longest message that SHA-256 takes in one compression, where 32
	// bits an id would cost two. Every vocabulary in use is below 2^19.
	packedBits = 19

	tagWide  = 1 << 0 // ids of 32 bits: one of them does not fit packedBits
	tagKeyed = 1 << 1 // a digest of the block's own extra key follows the parent

	// maxMessage holds a block of 64 tokens in the widest form; longer blocks are hashed in pieces.
	maxMessage = 16 + 16 + 64*4 + 1
)

// Root is the parent of a chain's first block. Chains of different roots share nothing: salt
// isolates tenants, extra is whatever else content depends on (the adapter's name). Through the
// chain both reach every block.
func Root(salt, extra []byte) Hash {
	d := sha256.New()
	d.Write([]byte("quire kv root 1\x00"))
	var n [8]byte
	for _, part := range [][]byte{salt, extra} {
		binary.LittleEndian.PutUint64(n[:], uint64(len(part)))
		d.Write(n[:])
		d.Write(part)
	}
	var sum [sha256.Size]byte
	return Hash(d.Sum(sum[:0])[:16])
}

// ChildHash is the hash of one full block of tokens behind parent: the first 128 bits of SHA-256
// over (parent, token ids). Two chains with an equal hash have equal content: finding another is as
// hard as a collision of SHA-256 cut to 128 bits, about 2^64 tries, with or without the salt.
func ChildHash(parent Hash, tokens []int32) Hash { return childHash(parent, tokens, nil) }

// ChildHashKeyed is [ChildHash] of a block whose content depends on more than its tokens: an image
// behind placeholder tokens, or prompt embeddings. key says on what; an empty key is none.
func ChildHashKeyed(parent Hash, tokens []int32, key []byte) Hash {
	return childHash(parent, tokens, key)
}

func childHash(parent Hash, tokens []int32, key []byte) Hash {
	var all uint32
	for _, t := range tokens {
		all |= uint32(t)
	}
	var tag byte
	if all>>packedBits != 0 {
		tag |= tagWide
	}
	var buf [maxMessage]byte
	n := copy(buf[:], parent[:])
	if len(key) > 0 {
		tag |= tagKeyed
		digest := sha256.Sum256(key)
		n += copy(buf[n:], digest[:16])
	}
	for len(tokens) > 64 {
		// A longer block is chained piece by piece inside; only the last piece names it.
		n += putTokens(buf[n:], tokens[:64], tag)
		buf[n] = tag | 1<<7
		sum := sha256.Sum256(buf[:n+1])
		n = copy(buf[:], sum[:16])
		tokens = tokens[64:]
	}
	n += putTokens(buf[n:], tokens, tag)
	buf[n] = tag
	sum := sha256.Sum256(buf[:n+1])
	return Hash(sum[:16])
}

// putTokens writes ids in the tag's width, least significant bit first, and returns the bytes
// written. The length of the message tells how many ids it holds.
func putTokens(dst []byte, tokens []int32, tag byte) int {
	n := 0
	if tag&tagWide != 0 {
		for _, t := range tokens {
			binary.LittleEndian.PutUint32(dst[n:], uint32(t))
			n += 4
		}
		return n
	}
	var acc uint64
	bits := 0
	for _, t := range tokens {
		acc |= uint64(t) << bits
		bits += packedBits
		if bits >= 32 {
			binary.LittleEndian.PutUint32(dst[n:], uint32(acc))
			n += 4
			acc >>= 32
			bits -= 32
		}
	}
	for ; bits > 0; bits -= 8 {
		dst[n] = byte(acc)
		n++
		acc >>= 8
	}
	return n
}

// Hashes appends the hash of every full block of tokens, in order, to dst. A partial last block has
// none.
func Hashes(dst []Hash, parent Hash, tokens []int32, blockTokens int) []Hash {
	for ; len(tokens) >= blockTokens; tokens = tokens[blockTokens:] {
		parent = childHash(parent, tokens[:blockTokens], nil)
		dst = append(dst, parent)
	}
	return dst
}

// Item is a piece of a prompt whose content its tokens do not tell: an image, a sound, or
// embeddings given instead of tokens. Every block that it overlaps is named by ID and by where the
// item starts relative to the block.
type Item struct {
	Start, End int // the tokens [Start, End) stand for it
	ID         []byte
}

// appendItemKey appends the extra key of the block that starts at token from: one entry for each
// item that overlaps it.
func appendItemKey(dst []byte, items []Item, from, blockTokens int) []byte {
	for _, it := range items {
		if it.End <= from || it.Start >= from+blockTokens {
			continue
		}
		dst = binary.LittleEndian.AppendUint64(dst, uint64(int64(it.Start-from)))
		dst = binary.LittleEndian.AppendUint64(dst, uint64(len(it.ID)))
		dst = append(dst, it.ID...)
	}
	return dst
}
