// Package replay runs request traces through a [kvcache.Pool] and says what the cache did with them:
// how much memory is held but not filled, and how much of the prompts was there already.
//
// It reads two public formats. Azure LLM inference traces (CSV: TIMESTAMP, ContextTokens,
// GeneratedTokens) have real lengths; Mooncake traces (JSON lines: timestamp, input_length,
// output_length, hash_ids of 512-token blocks) have real sharing. The readers refuse lines that they
// do not understand. The package knows nothing of devices, engines or networks.
package replay
