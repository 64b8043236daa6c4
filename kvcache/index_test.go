package kvcache

import (
	"encoding/binary"
	"testing"
)

// TestIndexSpreads: hashes that agree in all but a few bits, wherever those are, do not pile up in
// one bucket.
func TestIndexSpreads(t *testing.T) {
	const n = 4096
	for shift := 0; shift <= 128-12; shift += 4 {
		x := newIndex(n, 0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f)
		blocks := nodes(n)
		for i := range blocks {
			var lo, hi uint64
			if shift < 64 {
				lo = uint64(i) << shift
				hi = uint64(i) >> (64 - shift)
			} else {
				hi = uint64(i) << (shift - 64)
			}
			binary.LittleEndian.PutUint64(blocks[i].hash[:8], lo)
			binary.LittleEndian.PutUint64(blocks[i].hash[8:], hi)
			x.insert(blocks, BlockID(i))
		}
		longest := 0
		for _, id := range x.buckets {
			length := 0
			for ; id != NoBlock; id = blocks[id].chain {
				length++
			}
			longest = max(longest, length)
		}
		if longest > 64 {
			t.Errorf("hashes that differ from bit %d on: %d in one bucket", shift, longest)
		}
		for i := range blocks {
			if got := x.find(blocks, &blocks[i].hash); got != BlockID(i) {
				t.Fatalf("block %d is found as %d", i, got)
			}
		}
		for i := range blocks {
			if !x.remove(blocks, BlockID(i)) || x.remove(blocks, BlockID(i)) {
				t.Fatalf("block %d was not there once", i)
			}
		}
	}
}
