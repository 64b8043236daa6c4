package batch

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Block says what keeps a request from a worker; several may at once.
type Block uint16

// Sequences, Blocks and PromptTokens are full for the request. Draining, Unhealthy and Cordoned workers
// take nothing new. A Stale worker has not been heard of for too long, an Unknown one not yet. TooLong
// requests never fit. A Reserved worker is kept for a request that this one would delay.
const (
	Sequences Block = 1 << iota
	Blocks
	PromptTokens
	Draining
	Unhealthy
	Stale
	Unknown
	TooLong
	Cordoned
	Reserved
)

var blockNames = []string{"sequences", "blocks", "prompt tokens", "draining", "unhealthy", "stale", "unknown", "too long", "cordoned", "reserved"}

// Names lists what blocks, in words.
func (b Block) Names() []string {
	var out []string
	for n, name := range blockNames {
		if b>>n&1 == 1 {
			out = append(out, name)
		}
	}
	return out
}

func (b Block) String() string { return strings.Join(b.Names(), ", ") }

// Explanation is why a request waits.
type Explanation struct {
	Request Request
	Policy  Policy
	WaitMS  int64
	// Position is the request's in the order in which the model's queue would be placed if nothing
	// came or ended, and less urgent classes were owed nothing; 1 is next.
	Position int
	// ClassPosition and TenantPosition are the same within its class, and among its tenant's there.
	ClassPosition, TenantPosition int
	// TenantServed is the tenant's account in the class, tokens by weight, above that of the tenant served last:
	// tenants with less go first. TenantWeight is its weight.
	TenantServed, TenantWeight int64
	// HeldMS is for how long a worker could have started the request, and it was kept for one that
	// holds its prefix; 0 if it was not.
	HeldMS int64
	// ReservedWorker is kept for the request, if one is, and has room in ReservedMS at the latest.
	ReservedWorker string
	ReservedMS     int64
	// Workers of the model, the best score first, then those that cannot start it.
	Workers []WorkerScore
	// Blocked is what is in the way on the worker nearest to starting it; 0 if one can start it.
	Blocked Block
	// Unblock says what would let it start.
	Unblock string
}

// WorkerScore is how a request would do on a worker.
type WorkerScore struct {
	WorkerID string
	// Score is the policy's; the lowest is the best. Policies that do not hold requests rate only
	// workers that can start it: Rated.
	Score int64
	Rated bool
	// PredictedUS is the predicted time to the first token from a start now.
	PredictedUS int64
	// Tokens of the prompt that the worker holds, by where; WorkTokens is what it costs all the same.
	DeviceTokens, HostTokens, DiskTokens int
	WorkTokens                           int64
	// PendingTokens were given to it and are not computed, by its last word and what was sent since.
	PendingTokens int64
	// TokensPerS is its speed as measured or assumed.
	TokensPerS int64
	Sequences  int
	// DeratePermille is the share of its speed that its devices give; AgeMS is the age of its last
	// word, of which TrustPermille of the room counts.
	DeratePermille, AgeMS, TrustPermille int64
	Blocked                              Block
	Missing                              Shortage
	// Unblock says what would let the request start there; empty if it can.
	Unblock string
}

// Explain says why a request waits; false if it is not in the queue. It changes nothing.
func (b *Batcher) Explain(id string, nowMS int64) (Explanation, bool) {
	i := b.items[id]
	if i == nil {
		return Explanation{}, false
	}
	p := b.pools[i.Model]
	out := Explanation{
		Request: i.Request, Policy: b.settings.Policy, WaitMS: max(0, nowMS-i.ArrivalMS),
		TenantServed: (i.flow.served - i.flow.class.now) / accountScale, TenantWeight: i.flow.weight,
	}
	out.ClassPosition, out.TenantPosition = p.positions(i)
	out.Position = out.ClassPosition
	for _, c := range p.queue.classes[:i.flow.class.number] {
		if c != nil {
			out.Position += c.len
		}
	}
	if r := i.reserved; r != nil {
		r.foresee(nowMS)
		out.ReservedWorker, out.ReservedMS = r.member.ID, max(0, r.promiseMS-nowMS)
	}
	if i.held {
		out.HeldMS = nowMS - i.heldMS
	}
	candidates := b.rate(p, i, nowMS)
	var nearest *candidate
	for n := range candidates {
		c := &candidates[n]
		out.Workers = append(out.Workers, b.workerScore(c, nowMS))
		if nearest == nil || b.nearer(c, nearest) {
			nearest = c
		}
	}
	slices.SortStableFunc(out.Workers, func(x, y WorkerScore) int {
		switch {
		case x.Rated != y.Rated:
			if x.Rated {
				return -1
			}
			return 1
		case x.Score != y.Score:
			if x.Score < y.Score {
				return -1
			}
			return 1
		}
		return strings.Compare(x.WorkerID, y.WorkerID)
	})
	switch {
	case nearest == nil:
		out.Unblock = "a worker that serves " + i.Model
	case nearest.fits() && out.HeldMS > 0:
		out.Unblock = fmt.Sprintf("room on a worker that holds its prefix, or %d ms more", max(0, b.settings.HoldMS-out.HeldMS))
	case nearest.fits():
		out.Unblock = "its turn"
	default:
		out.Blocked = nearest.blocked
		out.Unblock = nearest.ID + ": " + nearest.unblock()
	}
	return out, true
}

// rate scores all workers of the model for a request. The candidates are the batcher's scratch.
func (b *Batcher) rate(p *pool, i *item, nowMS int64) []candidate {
	b.askOnly(i, nowMS)
	p.findLongest()
	b.candidates = b.candidates[:0]
	for _, m := range p.members {
		b.candidates = append(b.candidates, b.candidate(p, m, i, nowMS))
	}
	// What the policy would choose among comes first, in the order of ids.
	slices.SortStableFunc(b.candidates, func(x, y candidate) int {
		switch rx, ry := b.rates(&x), b.rates(&y); {
		case rx && !ry:
			return -1
		case ry && !rx:
			return 1
		}
		return 0
	})
	rated := 0
	for rated < len(b.candidates) && b.rates(&b.candidates[rated]) {
		rated++
	}
	if rated > 0 {
		b.policy.score(b.candidates[:rated])
	}
	return b.candidates
}

// rates says whether the policy rates the candidate.
func (b *Batcher) rates(c *candidate) bool {
	return c.fits() || b.policy.holds() && c.blocked == PromptTokens
}

// nearer says whether a request could start on one rather than on the other.
func (b *Batcher) nearer(c, than *candidate) bool {
	lasting := func(c *candidate) int {
		switch {
		case c.blocked&TooLong != 0:
			return 4
		case c.blocked&Unhealthy != 0:
			return 3
		case c.blocked&(Draining|Cordoned) != 0:
			return 2
		case c.blocked&(Stale|Unknown|Reserved) != 0:
			return 1
		}
		return 0
	}
	if lc, lt := lasting(c), lasting(than); lc != lt {
		return lc < lt
	}
	return c.size(c.short, b.settings.StepsAhead) < than.size(than.short, b.settings.StepsAhead)
}

func (b *Batcher) workerScore(c *candidate, nowMS int64) WorkerScore {
	out := WorkerScore{
		WorkerID: c.ID, Score: c.score, Rated: b.rates(c), PredictedUS: c.us,
		DeviceTokens: int(c.found.Device) * c.BlockTokens, HostTokens: int(c.found.Host) * c.BlockTokens,
		DiskTokens: int(c.found.Disk) * c.BlockTokens, WorkTokens: c.work,
		PendingTokens: c.member.tokens(), TokensPerS: c.speed.tokensPerS(), Sequences: c.sequences(),
		DeratePermille: int64(c.load.Derate), AgeMS: nowMS - c.reportMS, TrustPermille: b.trust(c.member, nowMS),
		Blocked: c.blocked, Missing: c.short, Unblock: c.unblock(),
	}
	if out.DeratePermille == 0 {
		out.DeratePermille = 1000
	}
	return out
}

// unblock says what would let the request start on the worker.
func (c *candidate) unblock() string {
	var out []string
	for _, why := range []struct {
		block Block
		text  string
	}{
		{TooLong, fmt.Sprintf("another worker: this one holds sequences of %d tokens", c.room())},
		{Draining, "another worker: this one drains"},
		{Cordoned, "another worker, or the end of this one's cordon"},
		{Unhealthy, "its devices' recovery"},
		{Unknown, "its first heartbeat"},
		{Stale, "its next heartbeat"},
		{Reserved, "the start of the request that it is kept for"},
		{Sequences, fmt.Sprintf("%d sequences fewer, of %d", c.short.Sequences, c.MaxSequences)},
		{Blocks, fmt.Sprintf("%d more free blocks, of %d", c.short.Blocks, c.TotalBlocks)},
		{PromptTokens, fmt.Sprintf("%d prompt tokens computed, of %d pending", c.short.PromptTokens, c.member.tokens())},
	} {
		if c.blocked&why.block != 0 {
			out = append(out, why.text)
		}
	}
	return strings.Join(out, "; ")
}

// positions are the request's in its class and in its tenant's queue there. Picking the tenant with
// the lowest account again and again, and charging it, takes requests in the order of the accounts at
// which each would be picked.
func (p *pool) positions(i *item) (inClass, inTenant int) {
	f, class := i.flow, i.flow.class
	inClass, inTenant = 1, 1
	// pass counts a request that goes first.
	pass := func(other *item) {
		inClass++
		if other.flow == f {
			inTenant++
		}
	}
	for _, r := range p.reserved {
		if r.item == i {
			return inClass, inTenant
		}
		if r.item.flow.class == class {
			pass(r.item)
		}
	}
	if i.Resumed {
		class.resumed.all(func(other *item) bool {
			if other != i {
				pass(other)
			}
			return other != i
		})
		return inClass, inTenant
	}
	class.resumed.all(func(other *item) bool { pass(other); return true })
	start := f.served
	for _, other := range f.ordered() {
		if other == i {
			break
		}
		pass(other)
		start += other.cost() * accountScale / f.weight
	}
	for _, other := range class.flows {
		account := other.served
		if other == f {
			continue
		}
		for _, o := range other.ordered() {
			if account > start || account == start && other.name > f.name {
				break
			}
			pass(o)
			account += o.cost() * accountScale / other.weight
		}
	}
	return inClass, inTenant
}

// ordered are the flow's requests in order.
func (f *flow) ordered() []*item {
	var out []*item
	for _, l := range f.lanes {
		l.items.all(func(i *item) bool { out = append(out, i); return true })
	}
	slices.SortFunc(out, func(a, b *item) int {
		if before(a, b) {
			return -1
		}
		return 1
	})
	return out
}

// Count is what waits under a name.
type Count struct {
	Name     string
	Requests int
	// Tokens of their prompts.
	Tokens       int64
	OldestWaitMS int64
}

// Summary is the whole queue.
type Summary struct {
	Count
	Bytes int64
	// Tenants and Models that wait, the most requests first.
	Tenants, Models []Count
	// Blocked counts what is in the way on the nearest of the summaryWorkers least loaded workers;
	// several may be of one request. Ready requests fit and wait for their turn, or for a worker that
	// holds their prefix: Held. Unserved ones have no worker at all.
	Blocked               []Count
	Ready, Held, Unserved int
}

// summaryWorkers bounds the workers that a summary looks at for each request.
const summaryWorkers = 4

// Summary sums the queue up.
func (b *Batcher) Summary(nowMS int64) Summary {
	out := Summary{Bytes: b.bytes}
	tenants, models, blocked := map[string]*Count{}, map[string]*Count{}, map[string]*Count{}
	near := map[string][]*member{}
	b.matches.stamp++ // What prompts would find is left out.
	for _, i := range b.items {
		out.add(i, nowMS)
		count(tenants, i.Tenant).add(i, nowMS)
		count(models, i.Model).add(i, nowMS)
		p := b.pools[i.Model]
		if near[i.Model] == nil {
			p.findLongest()
			near[i.Model] = p.leastLoaded(summaryWorkers)
		}
		var nearest candidate
		for _, m := range near[i.Model] {
			if c := b.candidate(p, m, i, nowMS); nearest.member == nil || b.nearer(&c, &nearest) {
				nearest = c
			}
		}
		switch {
		case nearest.member == nil:
			out.Unserved++
		case nearest.fits() && i.held:
			out.Held++
		case nearest.fits():
			out.Ready++
		}
		for _, name := range nearest.blocked.Names() {
			count(blocked, name).add(i, nowMS)
		}
	}
	out.Tenants, out.Models, out.Blocked = ordered(tenants), ordered(models), ordered(blocked)
	return out
}

func (c *Count) add(i *item, nowMS int64) {
	c.Requests++
	c.Tokens += int64(i.Tokens)
	c.OldestWaitMS = max(c.OldestWaitMS, nowMS-i.ArrivalMS)
}

func count(counts map[string]*Count, name string) *Count {
	c := counts[name]
	if c == nil {
		c = &Count{Name: name}
		counts[name] = c
	}
	return c
}

func ordered(counts map[string]*Count) []Count {
	var out []Count
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, *counts[name])
	}
	slices.SortStableFunc(out, func(x, y Count) int { return y.Requests - x.Requests })
	return out
}

// leastLoaded are up to n workers, those that can take requests first.
func (p *pool) leastLoaded(n int) []*member {
	all := slices.Clone(p.members)
	slices.SortStableFunc(all, func(x, y *member) int {
		switch ox, oy := p.open.has(x), p.open.has(y); {
		case ox && !oy:
			return -1
		case oy && !ox:
			return 1
		case x.key != y.key:
			if x.key < y.key {
				return -1
			}
			return 1
		}
		return 0
	})
	return all[:min(n, len(all))]
}
