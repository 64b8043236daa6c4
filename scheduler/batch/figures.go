package batch

import (
	"iter"
	"maps"
	"slices"
)

// Figures are those of one model's queue, for metrics.
type Figures struct {
	Model string
	// Requests wait, with so many choices; Bytes is the memory that they take.
	Requests, Sequences int
	Bytes               int64
	// OldestWaitMS is how long the one that came first has waited.
	OldestWaitMS int64
	// Classes counts the requests by priority, from MinPriority on.
	Classes [classes]int
	// Reserved are the workers that are kept for a request.
	Reserved int
}

// Waiting counts the requests in each model's queue.
func (b *Batcher) Waiting() iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for _, model := range slices.Sorted(maps.Keys(b.pools)) {
			if !yield(model, b.pools[model].queue.len) {
				return
			}
		}
	}
}

// Figures are the queues', by model. Only the oldest wait takes a look at everything that waits.
func (b *Batcher) Figures(nowMS int64) []Figures {
	oldest := map[string]int64{}
	for _, i := range b.items {
		oldest[i.Model] = max(oldest[i.Model], nowMS-i.ArrivalMS)
	}
	var out []Figures
	for _, model := range slices.Sorted(maps.Keys(b.pools)) {
		p := b.pools[model]
		f := Figures{Model: model, Requests: p.queue.len, Sequences: p.sequences, Bytes: p.bytes, OldestWaitMS: oldest[model], Reserved: len(p.reserved)}
		for n, c := range p.queue.classes {
			if c != nil {
				f.Classes[n] = c.len
			}
		}
		out = append(out, f)
	}
	return out
}
