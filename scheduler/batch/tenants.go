package batch

// inheritedTokens bounds what a batcher takes over of what tenants were given beyond others.
const inheritedTokens = 1 << 20

func (b *Batcher) weight(name string) int64 { return max(1, b.settings.Weights[name]) }

// SetWeight changes a tenant's share beside others; what it was given so far counts as before. The
// least weight is 1.
func (b *Batcher) SetWeight(name string, weight int64) {
	weight = max(1, weight)
	if b.settings.Weights == nil {
		b.settings.Weights = map[string]int64{}
	}
	if b.settings.Weights[name] = weight; weight == 1 {
		delete(b.settings.Weights, name) // As of any tenant that nothing is said of.
	}
	for _, p := range b.pools {
		for _, c := range p.queue.classes {
			if c != nil && c.flows[name] != nil {
				c.flows[name].weight = weight
			}
		}
	}
}

// Restore takes over what each tenant was given under another batcher, in tokens by its weight. It must
// come before any Push.
func (b *Batcher) Restore(shares map[string]int64) {
	lowest := int64(0)
	first := true
	for _, share := range shares {
		if first || share < lowest {
			lowest, first = share, false
		}
	}
	for name, share := range shares {
		if share > lowest {
			b.inherited[name] = min(share-lowest, inheritedTokens)
		}
	}
}

// open finds or opens a tenant's account.
func (b *Batcher) open(p *pool, priority int32, name string) *flow {
	f := p.queue.class(classOf(priority)).flow(name, b.weight(name))
	if more := b.inherited[name]; more > 0 {
		f.charge(more * f.weight)
		delete(b.inherited, name)
	}
	return f
}

// Served books tokens that a tenant was given for requests of a model and priority, beyond the prompts
// that Plan books itself.
func (b *Batcher) Served(model, name string, priority int32, tokens int64) {
	if p := b.pools[model]; p != nil {
		b.open(p, priority, name).charge(tokens)
	}
}

// Ahead counts the requests of a model that are placed before one of this tenant and priority with
// this deadline, whatever the shares of tenants come to be: those of more urgent classes, and the
// tenant's own that are due earlier. Of the more urgent ones no more than the reserve of the less urgent
// lets pass.
func (b *Batcher) Ahead(model, tenant string, priority int32, arrivalMS, deadlineMS int64) int {
	p := b.pools[model]
	if p == nil {
		return 0
	}
	dueMS := arrivalMS + patienceMS
	if deadlineMS != 0 {
		dueMS = min(dueMS, deadlineMS)
	}
	class := classOf(priority)
	urgent, own := 0, 0
	for _, c := range p.queue.classes[:class] {
		if c != nil {
			urgent += c.len
		}
	}
	if c := p.queue.classes[class]; c != nil && c.flows[tenant] != nil {
		for _, l := range c.flows[tenant].lanes {
			own += l.items.count(func(i *item) bool { return i.dueMS <= dueMS })
		}
	}
	return own + min(urgent, (own+1)*(reserveShare-1))
}
