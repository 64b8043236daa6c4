package replay

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
)

// Request is one line of a trace.
type Request struct {
	At     time.Duration // since the trace's first request
	Input  int           // prompt tokens
	Output int           // generated tokens
	Blocks []int32       // ids of the prompt's blocks, equal ids for equal content; Mooncake only
}

// maxTokens refuses lengths that no model has.
const maxTokens = 1 << 26

// Azure reads a trace in the format of the Azure LLM inference dataset.
func Azure(r io.Reader) ([]Request, error) {
	c := csv.NewReader(r)
	c.ReuseRecord = true
	c.FieldsPerRecord = 3
	head, err := c.Read()
	if err != nil {
		return nil, fmt.Errorf("replay: header: %w", err)
	}
	if !slices.Equal(head, []string{"TIMESTAMP", "ContextTokens", "GeneratedTokens"}) {
		return nil, fmt.Errorf("replay: header is %q, want TIMESTAMP,ContextTokens,GeneratedTokens", head)
	}
	var list []Request
	var first time.Time
	for line := 2; ; line++ {
		f, err := c.Read()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("replay: %w", err)
		}
		at, err := time.Parse("2006-01-02 15:04:05.9999999", f[0])
		if err != nil {
			return nil, fmt.Errorf("replay: line %d: TIMESTAMP: %w", line, err)
		}
		if first.IsZero() {
			first = at
		}
		q := Request{At: at.Sub(first)}
		if q.Input, err = strconv.Atoi(f[1]); err != nil || q.Input < 0 || q.Input > maxTokens {
			return nil, fmt.Errorf("replay: line %d: ContextTokens is %q, must be 0 to %d", line, f[1], maxTokens)
		}
		if q.Output, err = strconv.Atoi(f[2]); err != nil || q.Output < 0 || q.Output > maxTokens {
			return nil, fmt.Errorf("replay: line %d: GeneratedTokens is %q, must be 0 to %d", line, f[2], maxTokens)
		}
		list = append(list, q)
	}
}

// MooncakeBlockTokens is how many tokens one of a Mooncake trace's hash ids stands for.
const MooncakeBlockTokens = 512

// Mooncake reads a trace in the format of the Mooncake dataset. The last id of a request may stand
// for a partial block.
func Mooncake(r io.Reader) ([]Request, error) {
	var list []Request
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for line := 1; s.Scan(); line++ {
		if len(bytes.TrimSpace(s.Bytes())) == 0 {
			continue
		}
		var q struct {
			Timestamp int64   `json:"timestamp"` // milliseconds
			Input     int     `json:"input_length"`
			Output    int     `json:"output_length"`
			Hashes    []int32 `json:"hash_ids"`
		}
		if err := json.Unmarshal(s.Bytes(), &q); err != nil {
			return nil, fmt.Errorf("replay: line %d: %w", line, err)
		}
		if q.Input < 0 || q.Input > maxTokens || q.Output < 0 || q.Output > maxTokens {
			return nil, fmt.Errorf("replay: line %d: lengths %d and %d must be 0 to %d", line, q.Input, q.Output, maxTokens)
		}
		if n := (q.Input + MooncakeBlockTokens - 1) / MooncakeBlockTokens; n != len(q.Hashes) {
			return nil, fmt.Errorf("replay: line %d: %d hash_ids for %d tokens, want %d", line, len(q.Hashes), q.Input, n)
		}
		list = append(list, Request{At: time.Duration(q.Timestamp) * time.Millisecond, Input: q.Input, Output: q.Output, Blocks: q.Hashes})
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	return list, nil
}
