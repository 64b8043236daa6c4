// Package bench measures Quire from outside, as a client sees it: streams over HTTP, timed token by
// token. bench/compare runs it in turn with llama.cpp on the same machine and the same model file.
//
// Definitions, with n streams of p prompt tokens and o output tokens each, all sent at once:
//
//   - output rate: n·o / time from the first request sent to the last token received.
//   - prefill rate: n·p / time from the first request sent to the last stream's first token.
//   - decode rate: tokens received after every stream had its first one / time that took.
//   - time to first token (TTFT): request sent to first token received, per stream.
//
// The package imports nothing of ours: it speaks HTTP only.
package bench
