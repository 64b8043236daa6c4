package pace

import (
	"math"
	"testing"
)

// TestBuckets: numbers of decodes that share a bucket differ by a quarter at most.
func TestBuckets(t *testing.T) {
	first := map[int]int{}
	last := -1
	for d := 1; d <= 65536; d++ {
		b := Bucket(d)
		if b < last || b >= Buckets {
			t.Fatalf("%d decodes have bucket %d after %d", d, b, last)
		}
		last = b
		if _, ok := first[b]; !ok {
			first[b] = d
		}
		if float64(d) > math.Ceil(1.25*float64(first[b])) {
			t.Fatalf("%d and %d decodes share bucket %d", first[b], d, b)
		}
	}
}
