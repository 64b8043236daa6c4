package engine

// What the prefix cache is worth is what requests find there when they start for the first time: what they
// find again after a preemption, or one choice after the other, is their own. So is what they find when they
// come back after they were handed back, with tokens or without.

// maxReturned bounds how many requests that were handed back are remembered.
const maxReturned = 1024

// returnedHits remembers what requests that were handed back had found.
type returnedHits struct {
	tokens map[string]int32 // by request
	ids    []string         // the oldest first
}

func (h *returnedHits) remember(r *request) {
	if r.started == 0 {
		return
	}
	if h.tokens == nil {
		h.tokens = map[string]int32{}
	}
	if _, known := h.tokens[r.id]; !known {
		h.ids = append(h.ids, r.id)
	}
	h.tokens[r.id] = r.cached
	if len(h.ids) > maxReturned {
		delete(h.tokens, h.ids[0])
		h.ids = h.ids[1:]
	}
}

// countHits notes how many tokens of the prompt of r, which starts, were cached.
func (p *planner) countHits(r *request, cached int) {
	if before, known := p.returned.tokens[r.id]; known {
		r.cached = before
		return
	}
	if r.resumed {
		return // counted where it began
	}
	r.cached = int32(cached)
	if p.PrefixCache {
		p.count.queryTokens += int64(r.prompt)
		p.count.hitTokens += int64(cached)
		if r.prompt < p.BlockTokens {
			p.count.shortTokens += int64(r.prompt)
		}
	}
}
