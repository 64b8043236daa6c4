// Package tier keeps evicted KV blocks below the device: in host memory, and under that in files.
//
// A [Cache] is a bounded arena of pages in host memory, least recently used first out, over an
// optional [Disk]. Blocks that the pool evicts move down; blocks that a waiting request will need
// move up ahead of it:
//
//	for _, e := range pool.Evicted(nil) {          // while a step is planned; done: the newest step
//		if e.Step > done {                     // that the device has finished
//			continue
//		}
//		if page := cache.Reserve(e.Hash, e.Parent, e.Tenant); page != nil {
//			err := pages.Read(int32(e.Block), page)
//			cache.Commit(e.Hash, err == nil)
//		}
//	}
//	cache.Prefetch(hashes, tenant)                 // when a request is queued
//	host, _ := cache.Match(hashes)                 // when it is admitted:
//	page := cache.Pin(hash)                        // pages.Write, then cache.Unpin(hash)
//
// Pages that another worker has come in the same way, with Receive in the place of Reserve and whatever
// copies them in the place of pages.Read, on any goroutine.
//
// A page to be loaded is pinned before the evictions of the same plan are stored, which might push
// it out; and those are read before anything is written to their blocks.
//
// No call blocks on a file: one goroutine, which Close waits for, reads ahead and writes behind. Loss
// is always allowed, a wrong byte never: every file carries its format version, the digest of the
// layout that its bytes mean something in, its hash, and checksums; one that does not match is
// dropped and counted.
//
// Invariants: pages held never exceed the arena, nor a tenant's its quota; a pinned page is not
// evicted; what Pin returns is what Commit was given or what the file's checksum vouches for.
//
// The package imports of ours kvcache alone, and reads no clock.
package tier
