package tokenizer

import (
	"maps"
	"slices"
	"unicode"
	"unicode/utf8"
)

// splitter returns the length in bytes of the first word of text, which is not empty. No pattern
// looks behind, so the words of a text are found by cutting off the first one again and again.
type splitter func(text string) int

// pattern is one way to cut text into words before merging.
type pattern struct {
	split   splitter
	compose bool // the model's tokenizer normalises text to NFC first
}

// patterns maps GGUF's names. Several names share a pattern: they differ in the vocabulary only.
var patterns = map[string]pattern{
	"gpt-2": {split: splitGPT2},
	"phi-2": {split: splitGPT2},

	"smollm":    {split: splitDigitsGPT2},
	"starcoder": {split: splitDigitsGPT2},
	"refact":    {split: splitDigitsGPT2},

	"llama-bpe": {split: splitLlama3},
	"llama3":    {split: splitLlama3},
	"llama-v3":  {split: splitLlama3},

	"qwen2":            {split: splitQwen2, compose: true},
	"deepseek-r1-qwen": {split: splitQwen2, compose: true},

	"gpt-4o": {split: splitO200K},
}

// Patterns returns the names of the pre-tokenizers that are known, sorted.
func Patterns() []string { return slices.Sorted(maps.Keys(patterns)) }

// class is what a pattern asks of a character. The end of the text is a class of its own, which is
// neither space nor not-space.
type class uint8

const (
	atEnd class = iota
	letter
	number
	space
	other
)

var asciiClass = func() (table [utf8.RuneSelf]class) {
	for i := range table {
		table[i] = classOfRune(rune(i))
	}
	return table
}()

func classOfRune(r rune) class {
	switch {
	case unicode.IsLetter(r):
		return letter
	case unicode.IsNumber(r):
		return number
	case unicode.IsSpace(r):
		return space
	case unicode.Is(newLetters, r):
		return letter
	case unicode.Is(newNumbers, r):
		return number
	}
	return other
}

// classAt returns the class and the length of the character at text[i]. A byte that is not UTF-8 is
// one character of class other.
func classAt(text string, i int) (class, int) {
	if i >= len(text) {
		return atEnd, 0
	}
	if b := text[i]; b < utf8.RuneSelf {
		return asciiClass[b], 1
	}
	r, n := utf8.DecodeRuneInString(text[i:])
	return classOfRune(r), n
}

// runEnd returns where the run of characters of class c that goes on at text[i] ends.
func runEnd(text string, i int, c class) int {
	for {
		got, n := classAt(text, i)
		if got != c {
			return i
		}
		i += n
	}
}

// splitGPT2 is
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
func splitGPT2(text string) int { return gpt2(text, false) }

// splitDigitsGPT2 cuts every number character out first and applies the pattern of GPT-2 to what
// lies between, so that a number ends the text for the pattern's look-ahead.
func splitDigitsGPT2(text string) int { return gpt2(text, true) }

func gpt2(text string, digitsApart bool) int {
	c, n := classAt(text, 0)
	if digitsApart && c == number {
		return n
	}
	if k := contraction(text, false); k > 0 {
		return k
	}
	start := 0
	if text[0] == ' ' {
		if after, _ := classAt(text, 1); after == letter || after == other || after == number && !digitsApart {
			c, start = after, 1
		}
	}
	if c != space {
		return runEnd(text, start, c)
	}
	return spaces(text, digitsApart)
}

// spaces matches \s+(?!\S)|\s+ at the start of text, which is a space: the whole run if the text
// ends after it, else all but its last character, which belongs to the next word, unless that is
// the only one.
func spaces(text string, digitsApart bool) int {
	last, end := 0, 0
	for {
		c, n := classAt(text, end)
		if c != space {
			if c == atEnd || last == 0 || digitsApart && c == number {
				return end
			}
			return last
		}
		last, end = end, end+n
	}
}

// contraction matches 's|'t|'re|'ve|'m|'ll|'d at the start of text; with fold, in any case.
func contraction(text string, fold bool) int {
	if len(text) < 2 || text[0] != '\'' {
		return 0
	}
	first, n := lower(text[1:], fold)
	switch first {
	case 's', 't', 'm', 'd':
		return 1 + n
	case 'r', 'v', 'l':
		want := byte('e')
		if first == 'l' {
			want = 'l'
		}
		if second, k := lower(text[1+n:], fold); second == want {
			return 1 + n + k
		}
	}
	return 0
}

// lower returns the first character of text if it is an ASCII letter or, with fold, one that equals
// an ASCII letter when case is ignored: besides the other case that is the long s.
func lower(text string, fold bool) (byte, int) {
	if text == "" {
		return 0, 0
	}
	b := text[0]
	switch {
	case !fold:
		return b, 1
	case b >= 'A' && b <= 'Z':
		return b + 'a' - 'A', 1
	case len(text) >= 2 && text[:2] == "ſ":
		return 's', 2
	}
	return b, 1
}

// splitLlama3 is
//
//	(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
func splitLlama3(text string) int { return llama3(text, 3) }

// splitQwen2 is the pattern of Llama 3 with single digits.
func splitQwen2(text string) int { return llama3(text, 1) }

func llama3(text string, digits int) int {
	if k := contraction(text, true); k > 0 {
		return k
	}
	c, n := classAt(text, 0)
	switch c {
	case letter:
		return runEnd(text, n, letter)
	case number:
		return numbers(text, digits)
	}
	if after, _ := classAt(text, n); after == letter && text[0] != '\r' && text[0] != '\n' {
		return runEnd(text, n, letter)
	}
	if end := punctuation(text, "\r\n"); end > 0 {
		return end
	}
	return lines(text)
}

// numbers matches \p{N}{1,limit} at the start of text, which is a number.
func numbers(text string, limit int) int {
	end := 0
	for range limit {
		c, n := classAt(text, end)
		if c != number {
			break
		}
		end += n
	}
	return end
}

// punctuation matches " ?[^\s\p{L}\p{N}]+" and any of the bytes in tail after it.
func punctuation(text, tail string) int {
	start := 0
	if text[0] == ' ' {
		start = 1
	}
	end := runEnd(text, start, other)
	if end == start {
		return 0
	}
	for end < len(text) && (text[end] == tail[0] || text[end] == tail[1] || len(tail) > 2 && text[end] == tail[2]) {
		end++
	}
	return end
}

// lines matches \s*[\r\n]+|\s+(?!\S)|\s+ at the start of text, which is a space: a run of space up
// to its last line break if it has one.
func lines(text string) int {
	broken := 0
	for end := 0; ; {
		c, n := classAt(text, end)
		if c != space {
			break
		}
		end += n
		if b := text[end-1]; b == '\n' || b == '\r' {
			broken = end
		}
	}
	if broken > 0 {
		return broken
	}
	return spaces(text, false)
}
