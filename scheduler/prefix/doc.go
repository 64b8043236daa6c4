// Package prefix knows which worker's KV cache holds which blocks, so that a prompt can go where the
// longest part of it need not be computed.
//
// An Index is fed with what workers say of their caches: blocks stored on a medium and removed from
// it, by their chained hashes. Match walks a prompt's hashes once and returns how long a beginning
// each worker holds. All updates are applied when the call that brings them returns.
//
// How it is built: blocks are entries of open-addressing tables (table.go), 24 bytes each with their
// free slots 30 to 60, addressed by the hash's own bits. An entry has three sets of workers, one a
// medium. A set of one worker is that worker's number; larger ones are bitmaps that all entries with
// the same workers share (sets.go), so that the blocks of a prompt that a thousand workers hold take
// one bitmap together. Along a chain the sets are mostly the same, so that neither an update nor a
// lookup looks at them block by block. A worker that leaves is marked and forgotten at once; its
// entries go bit by bit with the updates that follow.
//
// Invariants:
//
//   - Memory stays below Settings.Bytes. An index that is full forgets the blocks that nobody has matched
//     for the longest (second chance, table by table) before it takes up others: it then finds less than
//     there is, never what is not there.
//   - A block is compared by 103 of its hash's 128 bits.
//   - The same calls give the same answers in the same order.
//
// It must not import gRPC, or anything else of ours but kvcache, which names blocks: the simulator
// runs this very code.
package prefix
