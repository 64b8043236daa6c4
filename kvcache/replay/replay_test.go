package replay

import (
	"flag"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// The samples in testdata are made up, in the formats of the public traces. With these flags the
// same tests run over the real ones too.
var (
	azure    = flag.String("azure", "", "an Azure LLM inference trace to replay as well")
	mooncake = flag.String("mooncake", "", "a Mooncake trace to replay as well")
)

func load(t testing.TB, name string, read func(io.Reader) ([]Request, error)) []Request {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := read(f)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return list
}

// TestWaste: at most one partial block a sequence, nothing else.
func TestWaste(t *testing.T) {
	files := []string{"testdata/lengths.csv"}
	if *azure != "" {
		files = append(files, *azure)
	}
	for _, name := range files {
		list := load(t, name, Azure)
		r, err := Waste(list, 16)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %v", name, r)
		if r.BlocksBeyond != 0 {
			t.Errorf("a request held %d blocks that it had not begun to fill", r.BlocksBeyond)
		}
		if r.Overall > 0.016 || r.Overall < 0.001 {
			t.Errorf("waste is %.3f%%, want 0.1%% to 1.6%%", 100*r.Overall)
		}
		// What arithmetic alone says, without a pool.
		var held, filled int64
		for _, q := range list {
			for n := q.Input; n <= q.Input+q.Output; n++ {
				held += int64((n + 15) / 16 * 16)
				filled += int64(n)
			}
		}
		if want := float64(held-filled) / float64(held); math.Abs(want-r.Overall) > 1e-12 {
			t.Errorf("waste is %v, the lengths say %v", r.Overall, want)
		}
	}
}

// TestHitRate: the pool finds what a plain least-recently-used cache would, and at least what one
// that evicts heads before tails would.
func TestHitRate(t *testing.T) {
	check := func(name string, requests []Request, capacities []int) []float64 {
		var rates []float64
		for _, n := range capacities {
			got, err := HitRate(requests, n)
			if err != nil {
				t.Fatal(err)
			}
			plain, heads := BlockLRU(requests, n, true), BlockLRU(requests, n, false)
			t.Logf("%s, %d blocks: %.2f%% hit; plain LRU %.2f%%, heads first %.2f%%", name, n, 100*got, 100*plain, 100*heads)
			if math.Abs(got-plain) > 0.001 || got < heads {
				t.Errorf("%s, %d blocks: %.4f, plain LRU %.4f, heads first %.4f", name, n, got, plain, heads)
			}
			rates = append(rates, got)
		}
		return rates
	}
	sample := check("sample", load(t, "testdata/sharing.jsonl", Mooncake), []int{80, 200, 400, 10_000})
	if !slices.IsSorted(sample) || sample[0] == sample[3] || sample[3] < 0.2 {
		t.Errorf("hit rates %v do not rise with the capacity", sample)
	}
	if *mooncake != "" {
		list, capacities := load(t, *mooncake, Mooncake), []int{1000, 5000, 10_000, 30_000}
		check("mooncake", list, capacities)
		for i, published := range []float64{8.25, 27.91, 42.35, 62.42} {
			if got := 100 * BlockLRU(list, capacities[i], false); math.Abs(got-published) > 0.005 {
				t.Errorf("block LRU hits %.3f%% at %d blocks, published is %.2f%%", got, capacities[i], published)
			}
		}
	}
}

func TestReadersRefuse(t *testing.T) {
	const head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
	for text, says := range map[string]string{
		"":                                      "header",
		"a,b,c\n":                               "header is",
		head + "2023-11-16 18:15:46.68,1\n":     "wrong number of fields",
		head + "yesterday,1,2\n":                "line 2: TIMESTAMP",
		head + "2023-11-16 18:15:46.68,-1,2\n":  "line 2: ContextTokens",
		head + "2023-11-16 18:15:46.68,1,1e9\n": "line 2: GeneratedTokens",
	} {
		if _, err := Azure(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
	for text, says := range map[string]string{
		`{`:                                      "line 1",
		`{"input_length": 513, "hash_ids": [1]}`: "1 hash_ids for 513 tokens, want 2",
		`{"input_length": -1, "hash_ids": []}`:   "lengths -1",
		"\n" + `{"input_length": 1, "hash_ids": [99999999999]}`: "line 2",
	} {
		if _, err := Mooncake(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
	got, err := Azure(strings.NewReader(head + "2023-11-16 18:15:46.5,374,44\n2023-11-16 18:15:50.75,396,109\n"))
	if err != nil || len(got) != 2 || got[1].At != 4250*time.Millisecond || got[1].Input != 396 || got[1].Output != 109 {
		t.Errorf("%+v, %v", got, err)
	}
}
