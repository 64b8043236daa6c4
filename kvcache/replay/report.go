package replay

import (
	"container/list"
	"fmt"
	"slices"

	"github.com/quire-serve/quire/kvcache"
)

// WasteReport says which share of the memory that requests held was not filled with tokens.
type WasteReport struct {
	Requests int
	// Overall is unfilled slots over held slots, summed over all requests and over every step of
	// their decoding.
	Overall float64
	// P50, P90, P99 and Max are of the single requests' own shares.
	P50, P90, P99, Max float64
	// BlocksBeyond is the largest number of blocks that a request held and had not begun to fill.
	BlocksBeyond int
}

func (r WasteReport) String() string {
	return fmt.Sprintf("%d requests: %.3f%% of held KV memory unfilled (per request p50 %.3f%%, p90 %.3f%%, p99 %.3f%%, max %.2f%%); at most %d blocks beyond the one being filled",
		r.Requests, 100*r.Overall, 100*r.P50, 100*r.P90, 100*r.P99, 100*r.Max, r.BlocksBeyond)
}

// Waste grows every request of a trace token by token, from its prompt to its end, and compares the
// blocks it holds with the tokens in them.
func Waste(requests []Request, blockTokens int) (WasteReport, error) {
	longest := 1
	for _, q := range requests {
		longest = max(longest, q.Input+q.Output)
	}
	pool, err := kvcache.NewPool(kvcache.Config{Blocks: (longest + blockTokens - 1) / blockTokens, BlockTokens: blockTokens})
	if err != nil {
		return WasteReport{}, err
	}
	var report WasteReport
	var held, filled int64
	var shares []float64
	prompt := make([]int32, longest)
	for _, q := range requests {
		if q.Input == 0 {
			continue
		}
		s := pool.NewSequence(kvcache.Hash{})
		if _, _, _, err := s.Begin(prompt[:q.Input], q.Input); err != nil {
			return WasteReport{}, err
		}
		var h, f int64
		for n := q.Input; ; n++ {
			slots := len(s.Table()) * blockTokens
			h, f = h+int64(slots), f+int64(n)
			report.BlocksBeyond = max(report.BlocksBeyond, (slots-n)/blockTokens)
			if n == q.Input+q.Output {
				break
			}
			if err := s.Grow(n + 1); err != nil {
				return WasteReport{}, err
			}
			pool.EndStep()
		}
		s.Release()
		held, filled = held+h, filled+f
		shares = append(shares, float64(h-f)/float64(h))
	}
	if err := pool.Audit(); err != nil {
		return WasteReport{}, err
	}
	if len(shares) == 0 {
		return report, nil
	}
	slices.Sort(shares)
	at := func(q float64) float64 { return shares[int(q*float64(len(shares)-1))] }
	report.Requests = len(shares)
	report.Overall = float64(held-filled) / float64(held)
	report.P50, report.P90, report.P99, report.Max = at(0.5), at(0.9), at(0.99), at(1)
	return report, nil
}

// HitRate runs the prompts of a Mooncake trace, one after the other, through a pool of that many
// 512-token blocks and returns the share of their blocks that was cached. The last id of a prompt
// counts as a whole block, as the published figures have it.
func HitRate(requests []Request, blocks int) (float64, error) {
	pool, err := kvcache.NewPool(kvcache.Config{Blocks: blocks, BlockTokens: MooncakeBlockTokens, PrefixCache: true})
	if err != nil {
		return 0, err
	}
	var hits, total int
	var prompt []int32
	for i, q := range requests {
		if len(q.Blocks) == 0 {
			continue
		}
		// A trace has no text: a block's tokens are its id, over and over.
		prompt = prompt[:0]
		for _, id := range q.Blocks {
			for range MooncakeBlockTokens {
				prompt = append(prompt, id)
			}
		}
		s := pool.NewSequence(kvcache.Hash{})
		cached, _, _, err := s.Begin(prompt, len(prompt))
		if err != nil {
			return 0, fmt.Errorf("replay: request %d of %d blocks: %w", i, len(q.Blocks), err)
		}
		s.Publish(prompt)
		pool.EndStep()
		s.Release()
		hits += (cached + MooncakeBlockTokens - 1) / MooncakeBlockTokens // all but one token is all
		total += len(q.Blocks)
		if err := pool.Check(); err != nil {
			return 0, err
		}
	}
	if total == 0 {
		return 0, nil
	}
	return float64(hits) / float64(total), nil
}

// BlockLRU is the hit rate of a plain least-recently-used cache of single blocks, which knows nothing
// of chains: of a request's blocks the last one is touched first, or, as the published figures have
// it, the first one, so that it goes before those that are of no use without it.
func BlockLRU(requests []Request, blocks int, tailsFirst bool) float64 {
	order, at := list.New(), map[int32]*list.Element{}
	hits, total := 0, 0
	for _, q := range requests {
		ids := slices.Clone(q.Blocks)
		for _, id := range ids {
			if at[id] == nil {
				break
			}
			hits++
		}
		total += len(ids)
		if tailsFirst {
			slices.Reverse(ids)
		}
		for _, id := range ids {
			if e := at[id]; e != nil {
				order.MoveToBack(e)
				continue
			}
			if order.Len() == blocks {
				delete(at, order.Remove(order.Front()).(int32))
			}
			at[id] = order.PushBack(id)
		}
	}
	return float64(hits) / float64(max(total, 1))
}
