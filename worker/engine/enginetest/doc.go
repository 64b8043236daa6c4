// Package enginetest has a fake of the device below the engine.
//
// [Runner] computes no matrix: a page holds the token ids that were stored in it, and the next token
// is a hash of what a sequence reads back through its page table. So the output is exactly that of
// [Predict] over the sequence's tokens if, and only if, every page table, copy, position, token
// reference and prefix hit was right. What is wrong in itself (a slot read before it was written, a
// page outside the cache, rows with gaps) is reported by [Runner.Err].
//
// It imports device alone.
package enginetest
