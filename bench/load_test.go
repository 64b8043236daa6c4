package bench

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// server answers every completion with n one-token events and a usage of claim tokens.
func server(t *testing.T, n, claim int) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range n {
			fmt.Fprint(w, "data: {\"choices\":[{\"text\":\"x\"}],\"usage\":null}\n\n")
		}
		fmt.Fprintf(w, "data: {\"choices\":[],\"usage\":{\"completion_tokens\":%d}}\n\ndata: [DONE]\n\n", claim)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestRunCountsEveryStream(t *testing.T) {
	l := Load{URL: server(t, 8, 8), Model: "m", Streams: 3, Prompt: 4, Output: 8, Vocab: 1000}
	r, err := l.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.TTFT) != 3 || len(r.Gap) != 3*7 || r.OutputRate <= 0 {
		t.Fatalf("report %+v", r)
	}
}

func TestRunRefusesShortStreams(t *testing.T) {
	l := Load{URL: server(t, 7, 7), Model: "m", Streams: 1, Prompt: 4, Output: 8, Vocab: 1000}
	if _, err := l.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "got 7 tokens, want 8") {
		t.Fatalf("error %v", err)
	}
}

func TestPromptsShareTheirBeginning(t *testing.T) {
	l := Load{Streams: 4, Prompt: 10, Sharing: 3, Prefix: 6, Vocab: 1000}
	p := l.prompts(rand.New(rand.NewPCG(1, 1)))
	for i := 1; i < 4; i++ {
		if same := slices.Equal(p[0][:6], p[i][:6]); same != (i < 3) {
			t.Errorf("prompts 0 and %d begin alike: %v", i, same)
		}
		if slices.Equal(p[0][6:], p[i][6:]) || len(p[i]) != 10 {
			t.Errorf("prompts 0 and %d: %v and %v", i, p[0], p[i])
		}
	}
}

func TestReport(t *testing.T) {
	start := time.Unix(0, 0)
	at := func(seconds ...int) []time.Time {
		var out []time.Time
		for _, s := range seconds {
			out = append(out, start.Add(time.Duration(s)*time.Second))
		}
		return out
	}
	l := Load{Streams: 2, Prompt: 10, Output: 3}
	r := l.report(start, [][]time.Time{at(1, 2, 3), at(2, 4, 6)})
	if r.OutputRate != 1 { // 6 tokens in 6 s
		t.Errorf("output rate %v, want 1", r.OutputRate)
	}
	if r.PrefillRate != 10 { // 20 tokens in 2 s
		t.Errorf("prefill rate %v, want 10", r.PrefillRate)
	}
	if r.DecodeRate != 0.75 { // tokens at 3, 4 and 6 s, in 4 s
		t.Errorf("decode rate %v, want 0.75", r.DecodeRate)
	}
	if r.TTFT[0] != time.Second || r.TTFT[1] != 2*time.Second {
		t.Errorf("TTFT %v", r.TTFT)
	}
}
