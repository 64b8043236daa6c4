package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"github.com/quire-serve/quire/kvcache"
)

// blockTokens is the size of the trace's blocks, and of the workers'.
const blockTokens = 512

// traced is a request of the trace.
type traced struct {
	arrivalUS     int64
	input, output int
	hashes        []kvcache.Hash // Of full blocks.
}

// readTrace reads Mooncake's format: a JSON object a line with timestamp (ms), input_length,
// output_length and hash_ids, one id a block, the last of which may be partial.
func readTrace(r io.Reader) ([]traced, error) {
	var out []traced
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			Timestamp    int64   `json:"timestamp"`
			InputLength  int     `json:"input_length"`
			OutputLength int     `json:"output_length"`
			HashIDs      []int32 `json:"hash_ids"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("line %d: %w", len(out)+1, err)
		}
		if line.InputLength < 1 || line.Timestamp < 0 || line.OutputLength < 0 {
			return nil, fmt.Errorf("line %d: input_length %d, output_length %d, timestamp %d", len(out)+1, line.InputLength, line.OutputLength, line.Timestamp)
		}
		full := min(line.InputLength/blockTokens, len(line.HashIDs))
		out = append(out, traced{
			arrivalUS: line.Timestamp * 1000, input: line.InputLength, output: max(1, line.OutputLength),
			hashes: kvcache.Hashes(nil, kvcache.Root(nil, nil), line.HashIDs[:full], 1),
		})
	}
	return out, lines.Err()
}
