// Package engine turns requests into tokens: iteration-level continuous batching over one device.
//
// A pure planner (plan.go) decides each step from the state and the budgets; a loop (loop.go) owns
// the only goroutine, hands steps to a [device.Runner] and plans step N+1 while step N runs. The
// tokens of a step leave in one call of the [Sink].
//
// How a step is planned:
//
//   - Sequences run in the order of (priority, arrival, choice). First each one that decodes gets its
//     row, then prefills share what is left of the token budget, then waiting sequences are admitted.
//     Beside decodes prefills get only as many tokens as leave streams their pace (package pace).
//
//   - A sequence is admitted only if blocks for all its tokens are there now, and takes them at once,
//     so that two half-filled prompts never wait for each other. Where one does not fit, later ones use
//     what is free until it does (admit.go).
//
//   - A decode that finds no block preempts the last sequence in the order, never one before itself:
//     the first can always go on, so the whole always makes progress. A preempted sequence keeps its
//     tokens and is computed again later.
//
//   - A request goes on after tokens that were generated elsewhere. If their log-probabilities are
//     wanted they are computed with the prompt's, and the request's events begin with them.
//
//   - With [Tiers], blocks that the pool evicts move to host memory and disk and come back for those
//     who wait for them, where that costs less than computing (tier.go, swap.go).
//
//   - A request that another worker handed over waits while its blocks come from there into host memory,
//     for as long as computing them would take at most; from host memory on they are like any others. An
//     engine whose own requests were handed over computes nothing more and has its blocks read (fetch.go).
//
// Invariants, each with a test:
//
//   - Tokens are a function of (weights, prompt, sampling): neither preemption, chunking, prefix hits,
//     overlap nor neighbours change them, nor where their blocks came from.
//   - Each token is delivered once, each choice ends with exactly one terminal event, each request
//     with exactly one event marked Done.
//   - Blocks return to the pool only when no step in flight can still write them.
//   - A step of decodes alone is planned without allocating.
//   - A failing step ends no request but one that makes every step fail in which it is alone (faults.go).
//
// The package imports no gRPC and no cgo, and only loop.go reads a clock.
package engine
