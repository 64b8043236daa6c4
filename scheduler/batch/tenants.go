package batch

// SetWeight changes a tenant's share beside others; what it was given so far counts as before. The
// least weight is 1.
func (b *Batcher) SetWeight(name string, weight int64) {
	weight = max(1, weight)
	if b.settings.Weights == nil {
		b.settings.Weights = map[string]int64{}
	}
	b.settings.Weights[name] = weight
	if t := b.tenants[name]; t != nil {
		t.weight = weight
	}
}

// Restore opens accounts as another batcher left them: what each tenant was given, by its weight. The
// lowest is where tenants start that are not named. It must come before any Push.
func (b *Batcher) Restore(shares map[string]int64) {
	if len(shares) == 0 {
		return
	}
	lowest := int64(0)
	first := true
	for _, share := range shares {
		if first || share < lowest {
			lowest, first = share, false
		}
	}
	// Only differences count; more than these would not be caught up with in a lifetime.
	const most = 1 << 50
	for name, share := range shares {
		b.tenant(name).served = b.floor + min(share-lowest, most)*accountScale
	}
}

// Ahead counts the requests of a model that are placed before one of this tenant and priority with
// this deadline, whatever the shares of tenants come to be: those of more urgent classes, and the
// tenant's own with an earlier deadline or an earlier arrival.
func (b *Batcher) Ahead(model, tenant string, priority int32, deadlineMS int64) int {
	p := b.pools[model]
	if p == nil {
		return 0
	}
	own := classOf(priority)
	n := 0
	for _, c := range p.queue.classes[:own] {
		if c != nil {
			n += c.oldest.len()
		}
	}
	if c := p.queue.classes[own]; c != nil && c.byName[tenant] != nil {
		for _, i := range c.byName[tenant].items.items {
			if i.DeadlineMS != 0 && i.DeadlineMS <= deadlineMS || deadlineMS == 0 {
				n++
			}
		}
	}
	return n
}
