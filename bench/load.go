package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Load is a burst of equal streams.
type Load struct {
	URL     string // of the server, without a path
	Model   string
	Streams int
	Prompt  int // tokens a prompt
	Output  int // tokens a stream
	Sharing int // streams whose prompts begin with the same Prefix tokens
	Prefix  int
	Vocab   int // prompts are drawn from ids below it
	Seed    uint64
}

// Report is what a burst measured. Rates are tokens a second.
type Report struct {
	OutputRate  float64
	PrefillRate float64
	DecodeRate  float64
	TTFT        []time.Duration // ascending
	Gap         []time.Duration // between tokens of a stream, ascending, all streams
}

// Run sends all streams at once and reads them to their end. Prompts are random, so that no prefix
// is in any cache before. A stream that fails or comes up short is an error.
func (l Load) Run(ctx context.Context) (Report, error) {
	rng := rand.New(rand.NewPCG(l.Seed, 0x9e3779b97f4a7c15))
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: l.Streams}}
	defer client.CloseIdleConnections()

	bodies := make([][]byte, l.Streams)
	for i, prompt := range l.prompts(rng) {
		body, err := json.Marshal(map[string]any{
			"model": l.Model, "prompt": prompt, "max_tokens": l.Output, "temperature": 0,
			"ignore_eos": true, "stream": true, "stream_options": map[string]any{"include_usage": true},
		})
		if err != nil {
			return Report{}, err
		}
		bodies[i] = body
	}

	times := make([][]time.Time, l.Streams)
	errs := make([]error, l.Streams)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range bodies {
		wg.Go(func() { times[i], errs[i] = l.stream(ctx, client, bodies[i]) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return Report{}, fmt.Errorf("stream %d: %w", i, err)
		}
	}
	return l.report(start, times), nil
}

// prompts draws the prompts; those that share a prefix come first.
func (l Load) prompts(rng *rand.Rand) [][]int {
	list := make([][]int, l.Streams)
	for i := range list {
		list[i] = make([]int, l.Prompt)
		for j := range list[i] {
			list[i][j] = 100 + rng.IntN(l.Vocab-100)
		}
		if i < l.Sharing {
			copy(list[i][:l.Prefix], list[0])
		}
	}
	return list
}

// stream reads one stream and returns when each token arrived. Tokens that share an event share
// its time.
func (l Load) stream(ctx context.Context, client *http.Client, body []byte) ([]time.Time, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.URL+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("%s: %s", resp.Status, text)
	}
	var at []time.Time
	tokens := 0
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok || bytes.Equal(data, []byte("[DONE]")) {
			continue
		}
		now := time.Now()
		var event struct {
			Choices []struct{ Text string }
			Usage   *struct {
				CompletionTokens int `json:"completion_tokens"`
			}
			Error *struct{ Message string }
		}
		if err := json.Unmarshal(data, &event); err != nil {
			return nil, fmt.Errorf("event %q: %w", data, err)
		}
		if event.Error != nil {
			return nil, fmt.Errorf("server: %s", event.Error.Message)
		}
		if len(event.Choices) > 0 {
			at = append(at, now)
		}
		if event.Usage != nil {
			tokens = event.Usage.CompletionTokens
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if tokens != l.Output {
		return nil, fmt.Errorf("got %d tokens, want %d", tokens, l.Output)
	}
	if len(at) == 0 {
		return nil, fmt.Errorf("no token arrived")
	}
	return at, nil
}

// report computes the rates. An event may carry several tokens or, at a character that spans
// tokens, none: the count of a window is shared out by events, so that totals are exact.
func (l Load) report(start time.Time, times [][]time.Time) Report {
	var r Report
	var lastFirst, end time.Time
	for _, at := range times {
		r.TTFT = append(r.TTFT, at[0].Sub(start))
		lastFirst = later(lastFirst, at[0])
		end = later(end, at[len(at)-1])
		for i := 1; i < len(at); i++ {
			r.Gap = append(r.Gap, at[i].Sub(at[i-1]))
		}
	}
	decoded := 0.0
	for _, at := range times {
		after := 0
		for _, t := range at {
			if t.After(lastFirst) {
				after++
			}
		}
		decoded += float64(after) * float64(l.Output) / float64(len(at))
	}
	slices.Sort(r.TTFT)
	slices.Sort(r.Gap)
	r.OutputRate = float64(l.Streams*l.Output) / end.Sub(start).Seconds()
	r.PrefillRate = float64(l.Streams*l.Prompt) / lastFirst.Sub(start).Seconds()
	r.DecodeRate = decoded / end.Sub(lastFirst).Seconds()
	return r
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
