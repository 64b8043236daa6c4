// Package kvcache keeps the books of a paged KV cache: which block of the device's memory belongs to
// whom, and which blocks hold content that another request can share.
//
// A block holds BlockTokens tokens of all layers. A [Pool] owns the blocks; a [Sequence] is one
// request's block table. Full blocks are named by a chained [Hash] over (parent, token ids, extra
// keys): an equal hash means equal content, so a request whose prompt begins with cached blocks
// starts behind them. A block that no sequence references stays cached until its memory is needed.
// [Groups] and [Tables] are the same for models of which some layers attend to a window and others to
// everything: a pool and a table for each.
//
// An engine's step:
//
//	cached := seq.Lookup(prompt)                         // how much is there already?
//	cached, cow, hasCow, err := seq.Begin(prompt, upTo)  // admission; later steps: seq.Grow(n)
//	seq.Publish(tokens)                                  // all known tokens that this step will have stored
//	step := pool.EndStep()                               // the plan is final: submit it
//	…                                                    // seq.Release() when a request has ended
//	err = pool.Check()
//
// Invariants, checked by tests and, for the first, in production after every step:
//
//   - free + cached + referenced + quarantined = total.
//   - A block is written by one sequence only; a shared block is never written.
//   - A reference count is the number of block tables that hold the block.
//   - A hash implies content: only blocks whose every token is final carry one.
//   - Allocation is all or nothing: a refusal changes nothing.
//
// The package imports nothing of ours, neither gRPC nor cgo, and reads no clock. DESIGN.md says why
// things are as they are.
package kvcache
