package tokenizer

import (
	"compress/gzip"
	"encoding/json"
	"os"
	"testing"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// golden reads a file that testdata/golden.py wrote.
func golden(t testing.TB, name string, into any) {
	t.Helper()
	f, err := os.Open("testdata/" + name + ".json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(z).Decode(into); err != nil {
		t.Fatal(err)
	}
}

// TestWords compares every scanner, word by word, with the regular expression that it stands for.
func TestWords(t *testing.T) {
	var texts []string
	var words map[string][][]int
	golden(t, "texts", &texts)
	golden(t, "words", &words)
	if len(texts) < 2100 || len(words) != 5 {
		t.Fatalf("golden files hold %d texts and %d patterns", len(texts), len(words))
	}
	for name, rows := range words {
		p := patterns[name]
		failed := 0
		for i, text := range texts {
			if p.compose {
				text = norm.NFC.String(text)
			}
			at := 0
			for n, want := range rows[i] {
				if at == len(text) {
					t.Errorf("%s: %q: %d words, want %d", name, text, n, len(rows[i]))
					failed++
					break
				}
				got := p.split(text[at:])
				if got != want {
					t.Errorf("%s: %q: word %d is %q, want %q", name, text, n, text[at:at+got], text[at:min(at+want, len(text))])
					failed++
					break
				}
				at += got
			}
			if failed > 20 {
				t.Fatalf("%s: too many differences", name)
			}
			if len(rows[i]) == 0 && text != "" {
				t.Errorf("%s: %q has no golden words", name, text)
			}
		}
	}
}

// TestCharacters compares the classes of all characters of Unicode.
func TestCharacters(t *testing.T) {
	var ranges map[string][][2]rune
	golden(t, "characters", &ranges)
	is := map[string]func(r rune, s string) bool{
		"letter": func(r rune, _ string) bool { return classOfRune(r) == letter },
		"number": func(r rune, _ string) bool { return classOfRune(r) == number },
		"space":  func(r rune, _ string) bool { return classOfRune(r) == space },
		"upper":  func(_ rune, s string) bool { u, l, _ := cases(s, 0); return u && !l },
		"lower":  func(_ rune, s string) bool { u, l, _ := cases(s, 0); return l && !u },
		"mark":   func(r rune, s string) bool { u, l, _ := cases(s, 0); return u && l && classOfRune(r) != letter },
	}
	for name, f := range is {
		want, failed := ranges[name], 0
		for r := rune(0); r <= unicode.MaxRune && failed < 20; r++ {
			if r >= 0xD800 && r < 0xE000 {
				continue
			}
			for len(want) > 0 && want[0][1] < r {
				want = want[1:]
			}
			if in := len(want) > 0 && want[0][0] <= r; f(r, string(r)) != in {
				t.Errorf("%U is %s: %t, want %t", r, name, !in, in)
				failed++
			}
		}
	}
}

func TestPatternNames(t *testing.T) {
	for _, name := range Patterns() {
		if patterns[name].split == nil {
			t.Errorf("%s has no scanner", name)
		}
	}
}
