package batch

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/quire-serve/quire/kvcache"
)

// Settings are the batcher's constants. Zero values mean the defaults stated per field.
type Settings struct {
	// PassMS is how long others may pass the first request, if it fits nowhere, before a worker is kept
	// for it. Default 1,000.
	PassMS int64
	// StepsAhead is how many steps of prompt tokens a worker may hold, so that it need not wait for
	// the leader between steps. Default 2.
	StepsAhead int
	// FreshMS is the age up to which a heartbeat is trusted in full; at StaleMS it is worth nothing.
	// Defaults 750 and 3,000.
	FreshMS, StaleMS int64
	// Weights of tenants in the fair share; a tenant that is not named has 1.
	Weights map[string]int64
	// Policy places requests. Default PolicyTTFT.
	Policy Policy
	// HoldMS is how long a request may wait in all for the worker that holds its prefix while another
	// could start it. Default 10,000.
	HoldMS int64
	// Matcher knows the workers' prefixes; nil is a fleet without.
	Matcher Matcher
}

func (s *Settings) setDefaults() {
	set := func(field *int64, value int64) {
		if *field == 0 {
			*field = value
		}
	}
	set(&s.PassMS, 1000)
	set(&s.FreshMS, 750)
	set(&s.StaleMS, 3000)
	set(&s.HoldMS, 10_000)
	if s.Policy == "" {
		s.Policy = PolicyTTFT
	}
	if s.StepsAhead == 0 {
		s.StepsAhead = 2
	}
}

// Validate says which field is wrong.
func (s Settings) Validate() error {
	switch {
	case s.PassMS < 0, s.FreshMS < 0, s.StepsAhead < 0, s.HoldMS < 0:
		return errors.New("batch: PassMS, FreshMS, StepsAhead and HoldMS must be positive")
	case s.StaleMS < s.FreshMS:
		return fmt.Errorf("batch: StaleMS %d is below FreshMS %d", s.StaleMS, s.FreshMS)
	}
	if s.Policy != "" && !slices.Contains(Policies(), s.Policy) {
		return fmt.Errorf("batch: Policy %q is unknown; known: %v", s.Policy, Policies())
	}
	for name, weight := range s.Weights {
		if weight < 1 {
			return fmt.Errorf("batch: Weights[%q] is %d; the least is 1", name, weight)
		}
	}
	return nil
}

// Assignment binds a request to a worker.
type Assignment struct {
	Request  Request
	WorkerID string
}

// Limits bound one plan.
type Limits struct {
	Requests int
	// Bytes of requests; the first may exceed it.
	Bytes int
}

// Batcher holds the queue and the views of the workers.
type Batcher struct {
	settings  Settings
	pools     map[string]*pool
	items     map[string]*item
	members   map[string]*member
	deadlines heap[*item]
	bytes     int64
	sequences int
	seq       uint64
	// inherited is what tenants were given beyond others, in tokens by weight, under another batcher.
	inherited map[string]int64

	policy     policy
	matches    matches
	promises   promises
	fitter     fitter      // Scratch of one plan.
	candidates []candidate // Scratch of one placement.
	held       []*member   // Those with a held backlog in this plan.
}

// pool is one model's queue and the workers that have room.
type pool struct {
	model   string
	queue   queue
	members []*member // By id.
	open    tree[*member]
	// reserved are the workers that are kept for a request, the longest first, and reserveMS is before
	// when no other is looked for.
	reserved  []*reservation
	reserveMS int64
	// sequences, tokens and bytes sum up what waits.
	sequences int
	tokens    int64
	bytes     int64
	// longest is the longest sequence that a worker which takes new requests can hold, as far as they have
	// not changed.
	longest int
	changed bool
}

// findLongest brings longest up to date.
func (p *pool) findLongest() {
	if !p.changed {
		return
	}
	p.longest, p.changed = 0, false
	for _, m := range p.members {
		if m.welcomes() {
			p.longest = max(p.longest, m.room())
		}
	}
}

// New returns an empty batcher. Settings must be valid.
func New(settings Settings) *Batcher {
	settings.setDefaults()
	settings.Weights = maps.Clone(settings.Weights) // SetWeight changes it.
	return &Batcher{
		settings:  settings,
		policy:    newPolicy(settings.Policy),
		promises:  promises{heads: map[kvcache.Hash]int32{}},
		pools:     map[string]*pool{},
		items:     map[string]*item{},
		members:   map[string]*member{},
		inherited: map[string]int64{},
		deadlines: heap[*item]{
			less: func(a, b *item) bool {
				if a.DeadlineMS != b.DeadlineMS {
					return a.DeadlineMS < b.DeadlineMS
				}
				return a.seq < b.seq
			},
			at: func(i *item) *int { return &i.inDeadlines },
		},
	}
}

// Len is how many requests wait; Sequences and Bytes are their choices and their size together.
func (b *Batcher) Len() int       { return len(b.items) }
func (b *Batcher) Sequences() int { return b.sequences }
func (b *Batcher) Bytes() int64   { return b.bytes }

func (b *Batcher) pool(model string) *pool {
	p := b.pools[model]
	if p == nil {
		p = &pool{model: model, open: tree[*member]{
			less: func(a, b *member) bool {
				switch ka, kb := a.key/alikeUS, b.key/alikeUS; {
				case ka != kb:
					return ka < kb
				case a.sent != b.sent:
					return a.sent < b.sent
				case a.key != b.key:
					return a.key < b.key
				}
				return a.ID < b.ID
			},
			at: func(m *member) *node[*member] { return &m.at },
		}}
		b.pools[model] = p
	}
	return p
}

// find is where the worker is, or belongs, among the pool's members.
func (p *pool) find(id string) (int, bool) {
	return slices.BinarySearchFunc(p.members, id, func(m *member, id string) int { return strings.Compare(m.ID, id) })
}

// tidy forgets a pool that has nothing left.
func (b *Batcher) tidy(p *pool) {
	if p.queue.len == 0 && len(p.members) == 0 {
		delete(b.pools, p.model)
	}
}

// Push puts a request into the queue. Its id must not be there.
func (b *Batcher) Push(r Request) {
	if b.items[r.ID] != nil {
		panic(fmt.Sprintf("batch: request %q is in the queue already", r.ID))
	}
	b.seq++
	i := &item{Request: r, need: r.need(), seq: b.seq, dueMS: r.ArrivalMS + patienceMS, inDeadlines: absent}
	p := b.pool(r.Model)
	if r.DeadlineMS != 0 {
		i.dueMS = min(i.dueMS, r.DeadlineMS)
		b.deadlines.push(i)
	}
	b.items[i.ID] = i
	b.count(p, i, 1)
	b.open(p, r.Priority, r.Tenant)
	p.queue.enter(i, b.weight(r.Tenant))
}

// count adds a request to the sums, or takes it away.
func (b *Batcher) count(p *pool, i *item, sign int) {
	b.bytes += int64(sign * i.Bytes)
	b.sequences += sign * i.choices()
	p.bytes += int64(sign * i.Bytes)
	p.sequences += sign * i.choices()
	p.tokens += int64(sign * i.Tokens)
}

// dequeue takes a request out of the queue for good.
func (b *Batcher) dequeue(i *item) {
	p := b.pools[i.Model]
	if i.reserved != nil {
		b.release(p, i.reserved)
	}
	p.queue.leave(i)
	if b.deadlines.has(i) {
		b.deadlines.remove(i)
	}
	b.forgetMatches(i)
	delete(b.items, i.ID)
	b.count(p, i, -1)
	b.tidy(p)
}

// withdraw takes out a request that has not started.
func (b *Batcher) withdraw(i *item) {
	b.pools[i.Model].queue.giveBack(i)
	b.dequeue(i)
}

// Remove takes a request out of the queue, and says whether it was there.
func (b *Batcher) Remove(id string) bool {
	i := b.items[id]
	if i == nil {
		return false
	}
	b.withdraw(i)
	return true
}

// Expired takes out the requests whose deadline is not after nowMS, earliest first.
func (b *Batcher) Expired(nowMS int64) []Request {
	var out []Request
	for b.deadlines.len() > 0 && b.deadlines.top().DeadlineMS <= nowMS {
		i := b.deadlines.top()
		b.withdraw(i)
		out = append(out, i.Request)
	}
	return out
}

// NextDeadlineMS is the earliest deadline in the queue; false if none has one.
func (b *Batcher) NextDeadlineMS() (int64, bool) {
	if b.deadlines.len() == 0 {
		return 0, false
	}
	return b.deadlines.top().DeadlineMS, true
}

// Join adds a worker, or replaces what is known of it. idle says that it runs nothing, so that it
// may be used before its first heartbeat. The worker's numbers must be positive.
func (b *Batcher) Join(w Worker, idle bool, nowMS int64) {
	b.Leave(w.ID)
	m := &member{Worker: w, reportMS: nowMS, known: idle}
	if idle {
		m.load.FreeBlocks = w.TotalBlocks
	}
	b.members[w.ID] = m
	b.matches.join(m)
	p := b.pool(w.Model)
	// A new worker has its turn as if it had been there from the start; it is not to make up for it.
	if len(p.members) > 0 {
		m.sent = slices.MinFunc(p.members, func(a, b *member) int { return cmp.Compare(a.sent, b.sent) }).sent
	}
	at, _ := p.find(w.ID)
	p.members = slices.Insert(p.members, at, m)
	p.changed = true
	b.reopen(p, m)
}

// Leave removes a worker and all its charges.
func (b *Batcher) Leave(id string) {
	m := b.members[id]
	if m == nil {
		return
	}
	p := b.pools[m.Model]
	if p.open.has(m) {
		p.open.remove(m)
	}
	at, _ := p.find(id)
	p.members = slices.Delete(p.members, at, at+1)
	p.changed = true
	delete(b.members, id)
	b.matches.leave(m)
	m.gone = true
	if r := m.reserved; r != nil {
		b.release(p, r)
		p.queue.push(r.item)
	}
	b.tidy(p)
}

// Drain stops new requests to a worker.
func (b *Batcher) Drain(id string) {
	if m := b.members[id]; m != nil {
		m.draining = true
		b.pools[m.Model].changed = true
		b.reopen(b.pools[m.Model], m)
	}
}

// Cordon keeps new requests from a worker, or lets them come again.
func (b *Batcher) Cordon(id string, cordoned bool) {
	if m := b.members[id]; m != nil && m.cordoned != cordoned {
		m.cordoned = cordoned
		b.pools[m.Model].changed = true
		b.reopen(b.pools[m.Model], m)
	}
}

// Report takes a heartbeat in: its numbers replace the older ones, and the charges of dispatches
// that it counts end.
func (b *Batcher) Report(id string, load Load, nowMS int64) {
	m := b.members[id]
	if m == nil || m.known && load.Sequence < m.load.Sequence {
		return
	}
	m.measure(load, nowMS)
	if load.Unhealthy != m.load.Unhealthy {
		b.pools[m.Model].changed = true
	}
	m.load, m.reportMS, m.known = load, nowMS, true
	m.drop(func(c charge) bool { return c.index <= load.DispatchIndex })
	b.reopen(b.pools[m.Model], m)
}

// Forget undoes the charge of a request that will not run on the worker after all, or has ended
// before a heartbeat counted it.
func (b *Batcher) Forget(workerID, requestID string) {
	m := b.members[workerID]
	if m == nil {
		return
	}
	m.drop(func(c charge) bool { return c.request == requestID })
	delete(m.runs, requestID)
	m.changed()
	b.reopen(b.pools[m.Model], m)
}

// reopen puts the worker where its load belongs: among the open ones, in order, or not.
func (b *Batcher) reopen(p *pool, m *member) {
	m.key = m.busyUS()
	switch open := m.reserved == nil && m.open(b.settings.StepsAhead); {
	case open && p.open.has(m):
		p.open.update(m, m.free(b.settings.StepsAhead))
	case open:
		p.open.insert(m, m.free(b.settings.StepsAhead))
	case p.open.has(m):
		p.open.remove(m)
	}
}

// trust is how much of a worker's reported room counts, in thousandths.
func (b *Batcher) trust(m *member, nowMS int64) int64 {
	age, fresh, stale := nowMS-m.reportMS, b.settings.FreshMS, b.settings.StaleMS
	switch {
	case age <= fresh:
		return 1000
	case age >= stale:
		return 0
	}
	return (stale - age) * 1000 / (stale - fresh)
}
