package tokenizer

import "unicode/utf8"

// The byte-level alphabet spells each byte as one printable character, so that a vocabulary can be
// written as text: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 onwards.
var (
	letterOf [256]rune
	byteOf   [256 + 68]int16 // -1: no letter of the alphabet
)

func init() {
	for i := range byteOf {
		byteOf[i] = -1
	}
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE) {
			r = next
			next++
		}
		letterOf[b] = r
		byteOf[r] = int16(b)
	}
}

// bytesOf returns the bytes that a token's spelling stands for. A spelling with a character outside
// the alphabet stands for itself.
func bytesOf(spelling string) string {
	out := make([]byte, 0, len(spelling))
	for i, r := range spelling {
		if r == utf8.RuneError && spelling[i] != 0xEF || int(r) >= len(byteOf) || byteOf[r] < 0 {
			return spelling
		}
		out = append(out, byte(byteOf[r]))
	}
	return string(out)
}
