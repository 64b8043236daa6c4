package batch

import (
	"cmp"
	"math"
	"math/bits"

	"github.com/quire-serve/quire/kvcache"
)

// Request is what the batcher must know of a request.
type Request struct {
	ID, Model, Tenant string
	// Priority is the class; lower is more urgent. Outside [MinPriority, MaxPriority] it counts as
	// the nearer of the two.
	Priority int32
	// ArrivalMS and DeadlineMS are Unix milliseconds; DeadlineMS 0 is none.
	ArrivalMS, DeadlineMS int64
	// Tokens must be computed before the first new one: the prompt, and what the longest choice has
	// generated already. OtherTokens are what the other choices have, together.
	Tokens, OtherTokens int
	// Length is the most tokens that a choice may end with, prompt and output. A worker that holds fewer
	// would end it early, so that the request rather waits for one that does not. 0 is unknown.
	Length int
	// Choices is how many sequences the request needs; 0 counts as 1.
	Choices int
	// Bytes is the memory that the request takes while it waits.
	Bytes int
	// Resumed requests were running before, and somebody reads them: they go first in their class, those
	// first whose output stopped the earliest, at PausedMS, and wait for no busy worker while another
	// has room.
	Resumed  bool
	PausedMS int64
	// Hashes name the full blocks of those tokens, as far as they are known: what workers hold of them
	// need not be computed. All workers of the model should have blocks of this size; one with
	// another size seems to hold nothing.
	Hashes []kvcache.Hash
}

// The priority classes that are told apart.
const (
	MinPriority = -8
	MaxPriority = 7
	classes     = MaxPriority - MinPriority + 1
)

const (
	// reserveShare is the part of what is served that less urgent classes get while a more urgent one
	// has always something waiting: one token of so many.
	reserveShare = 8
	// creditTokens bounds what a class, or by its weight a tenant, is owed that could not start anything
	// for a while, so that it does not stand before the others for long when it can.
	creditTokens = 16 << 10
	// patienceMS is how long later requests with a deadline may pass one of the same tenant without.
	patienceMS = 60_000
	// sequenceTokens is what a request costs its tenant for each choice beside the first, in prompt
	// tokens: a sequence of the worker's, and a block.
	sequenceTokens = 16
	// accountScale keeps the fraction that dividing by a weight would lose.
	accountScale = 1024
	// unknownOutput stands for an output without a bound.
	unknownOutput = math.MaxInt32
)

// classOf is the place of a priority among the classes.
func classOf(priority int32) int {
	return int(min(max(priority, MinPriority), MaxPriority)) - MinPriority
}

// choices is how many sequences the request needs.
func (r *Request) choices() int { return max(1, r.Choices) }

// cost is what the request's start costs its tenant, in prompt tokens.
func (r *Request) cost() int64 {
	return int64(r.Tokens+r.OtherTokens) + int64(r.choices()-1)*sequenceTokens
}

// need is what the request takes of a worker, by dimension.
func (r *Request) need() need {
	prompt := bounded(r.Tokens + 1)
	n := need{bounded(r.choices()), bounded(r.Tokens + r.OtherTokens), prompt, prompt, unknownOutput}
	if r.Length > 0 {
		n[needLength] = max(prompt, bounded(r.Length))
		n[needOutput] = n[needLength] - prompt + 1
	}
	return n
}

// bounded is a number as needs have them.
func bounded[T int | int64](n T) int32 { return int32(min(max(n, math.MinInt32), math.MaxInt32)) }

// shape tells requests apart that fit different workers, so that within one mostly a single number
// decides: the choices, and the length to the next power of two.
type shape struct{ choices, length int }

func (n *need) shape() shape {
	return shape{int(n[needSequences]), bits.Len32(uint32(n[needLength] - 1))}
}

// item is a request in the queue.
type item struct {
	Request
	need need
	seq  uint64
	// dueMS orders the requests of a tenant: the deadline, or patienceMS after its arrival.
	dueMS int64
	flow  *flow
	lane  *lane
	// blocked says that others passed the request while it was the first, because it fitted no worker,
	// from blockedMS on.
	blocked   bool
	blockedMS int64
	// reserved is the worker that is kept for it, if one is; charged says that its tenant has paid.
	reserved *reservation
	charged  bool
	// held says that the request was kept for a busy worker that holds its prefix, first at heldMS.
	held   bool
	heldMS int64
	// kept is the place of its matches, if they are still its; see matches.
	kept int
	// node is its place in its lane, or among its class's resumed ones.
	node node[*item]
	// inDeadlines is its place in Batcher.deadlines.
	inDeadlines int
}

// flow holds the requests of one tenant in one class for one model, and its account there: tokens
// served to it (times accountScale) by its weight. The tenant whose account is the lowest is next. One
// that comes when it had nothing waiting is lifted to where the one served last stood before (start-time
// fair queueing), so that idling saves up no credit; what it was given beyond that stays on its account.
type flow struct {
	name   string
	weight int64
	served int64
	class  *class
	lanes  []*lane
	// queued are its requests that wait, wherever.
	queued int
}

// lane holds those of a flow's requests that have one shape.
type lane struct {
	flow   *flow
	bucket *bucket
	items  tree[*item]
	node   node[*lane]
}

// bucket holds a class's lanes of one shape.
type bucket struct {
	shape shape
	lanes tree[*lane]
}

// class holds the requests of one priority for one model.
type class struct {
	number  int
	flows   map[string]*flow
	buckets []*bucket
	resumed tree[*item]
	// len counts what waits, with a worker reserved or without.
	len int
	// served is what the class got as a less urgent one, by its weight among these.
	served int64
	// now is the highest account at which a flow was next: where those begin that come.
	now int64
	// sweepAt is the number of flows at which idle ones are looked for.
	sweepAt int
}

// queue holds the requests for one model.
//
// The most urgent class that waits is next, unless the others are owed a request: of what it takes, one
// part in reserveShare-1 is theirs. They share it by weights that fall with urgency, as tenants share a class.
type queue struct {
	classes [classes]*class
	len     int
	// owed are the tokens that the less urgent classes may take first, and now the highest account at
	// which one of them was next.
	owed, now int64
}

func (q *queue) class(number int) *class {
	c := q.classes[number]
	if c == nil {
		c = &class{number: number, flows: map[string]*flow{}, sweepAt: 1024, resumed: tree[*item]{
			less: func(a, b *item) bool {
				return cmp.Or(cmp.Compare(a.PausedMS, b.PausedMS), cmp.Compare(a.ArrivalMS, b.ArrivalMS), cmp.Compare(a.seq, b.seq)) < 0
			},
			at: func(i *item) *node[*item] { return &i.node },
		}}
		q.classes[number] = c
	}
	return c
}

// flow finds or opens a tenant's account in the class.
func (c *class) flow(name string, weight int64) *flow {
	f := c.flows[name]
	if f == nil {
		if len(c.flows) >= c.sweepAt {
			// What stands no higher than where a new one begins is the same as none.
			for name, f := range c.flows {
				if f.queued == 0 && f.served <= c.now {
					delete(c.flows, name)
				}
			}
			c.sweepAt = max(1024, 2*len(c.flows))
		}
		f = &flow{name: name, weight: weight, class: c, served: c.now}
		c.flows[name] = f
	}
	return f
}

func before(a, b *item) bool {
	return cmp.Or(cmp.Compare(a.dueMS, b.dueMS), cmp.Compare(a.ArrivalMS, b.ArrivalMS), cmp.Compare(a.seq, b.seq)) < 0
}

// enter puts a request into the queue for the first time.
func (q *queue) enter(i *item, weight int64) {
	c := q.class(classOf(i.Priority))
	if c.len == 0 {
		c.served = max(c.served, q.now)
	}
	f := c.flow(i.Tenant, weight)
	if f.queued == 0 {
		f.served = max(f.served, c.now)
	}
	i.flow = f
	f.queued++
	c.len++
	q.len++
	q.push(i)
}

// leave takes a request out for good.
func (q *queue) leave(i *item) {
	if i.node.size > 0 {
		q.remove(i)
	}
	i.flow.queued--
	i.flow.class.len--
	q.len--
}

// push puts a request in its place in the order.
func (q *queue) push(i *item) {
	c := i.flow.class
	if i.Resumed {
		c.resumed.insert(i, i.need)
		return
	}
	l := i.flow.lane(i.need.shape())
	i.lane = l
	l.items.insert(i, i.need)
	if !l.bucket.lanes.has(l) {
		l.bucket.lanes.insert(l, l.items.root.least)
	} else {
		l.bucket.lanes.update(l, l.items.root.least)
	}
}

// remove takes a request out of the order.
func (q *queue) remove(i *item) {
	if i.Resumed {
		i.flow.class.resumed.remove(i)
		return
	}
	l := i.lane
	l.items.remove(i)
	i.lane = nil
	if l.items.len() > 0 {
		l.bucket.lanes.update(l, l.items.root.least)
		return
	}
	l.bucket.lanes.remove(l)
	l.flow.drop(l)
}

func (f *flow) lane(s shape) *lane {
	for _, l := range f.lanes {
		if l.bucket.shape == s {
			return l
		}
	}
	l := &lane{flow: f, bucket: f.class.bucket(s), items: tree[*item]{less: before, at: func(i *item) *node[*item] { return &i.node }}}
	f.lanes = append(f.lanes, l)
	return l
}

func (f *flow) drop(l *lane) {
	f.lanes = without(f.lanes, l)
	if l.bucket.lanes.len() == 0 {
		f.class.buckets = without(f.class.buckets, l.bucket)
	}
}

func (c *class) bucket(s shape) *bucket {
	for _, have := range c.buckets {
		if have.shape == s {
			return have
		}
	}
	out := &bucket{shape: s, lanes: tree[*lane]{
		less: func(a, b *lane) bool {
			return cmp.Or(cmp.Compare(a.flow.served, b.flow.served), cmp.Compare(a.flow.name, b.flow.name)) < 0
		},
		at: func(l *lane) *node[*lane] { return &l.node },
	}}
	c.buckets = append(c.buckets, out)
	return out
}

// without takes a value out of a list whose order does not matter.
func without[T comparable](list []T, x T) []T {
	for n, have := range list {
		if have == x {
			last := len(list) - 1
			list[n] = list[last]
			var none T
			list[last] = none
			return list[:last]
		}
	}
	return list
}

// charge books tokens on the account and moves it wherever it waits.
func (f *flow) charge(tokens int64) {
	f.served += tokens * accountScale / f.weight
	for _, l := range f.lanes {
		l.bucket.lanes.update(l, l.items.root.least)
	}
}

// take books the start of a request, once.
func (q *queue) take(i *item) {
	if i.charged {
		return
	}
	i.charged = true
	c, cost := i.flow.class, i.cost()
	if !i.Resumed { // Nobody pays for what a worker lost.
		c.now = max(c.now, i.flow.served)
		i.flow.served = max(i.flow.served, c.now-creditTokens*accountScale)
		i.flow.charge(cost)
	}
	first, others := q.top(), false
	for _, other := range q.classes[first.number+1:] {
		others = others || other != nil && other.len > 0
	}
	first.served = max(first.served, q.now)
	switch {
	case c != first:
		q.now = max(q.now, c.served)
		c.served = max(c.served, q.now-creditTokens*accountScale) + cost*accountScale/c.weight()
		q.owed = max(q.owed-cost, -max(creditTokens, cost))
	case others:
		q.owed = min(q.owed+cost/(reserveShare-1), creditTokens)
	default:
		q.owed = min(q.owed+cost/(reserveShare-1), max(q.owed, 0))
	}
}

// giveBack undoes take for a request that leaves without having started.
func (q *queue) giveBack(i *item) {
	if i.charged && !i.Resumed {
		i.flow.charge(-i.cost())
	}
	i.charged = false
}

// weight is the class's share among the less urgent ones.
func (c *class) weight() int64 { return int64(classes - c.number) }

// top is the most urgent class that waits; nil if none does.
func (q *queue) top() *class {
	for _, c := range q.classes {
		if c != nil && c.len > 0 {
			return c
		}
	}
	return nil
}

// next is the first request in order that is wanted; nil if there is none. may is as in tree.first.
func (q *queue) next(may func(*need) bool, wanted func(*item) bool) *item {
	top := q.top()
	if top == nil {
		return nil
	}
	if q.owed > 0 {
		if i := q.other(top, may, wanted); i != nil && q.owed >= min(i.cost(), creditTokens) {
			return i
		}
	}
	for _, c := range q.classes[top.number:] {
		if c != nil && c.len > 0 {
			if i := c.next(may, wanted); i != nil {
				return i
			}
		}
	}
	return nil
}

// other is the first request that is wanted of the classes below the most urgent one, the least served by
// weight first.
func (q *queue) other(top *class, may func(*need) bool, wanted func(*item) bool) *item {
	var tried [classes]bool
	for {
		var least *class
		for _, c := range q.classes[top.number+1:] {
			if c != nil && c.len > 0 && !tried[c.number] && (least == nil || c.served < least.served) {
				least = c
			}
		}
		if least == nil {
			return nil
		}
		tried[least.number] = true
		if i := least.next(may, wanted); i != nil {
			return i
		}
	}
}

// next is the first request of the class that is wanted.
func (c *class) next(may func(*need) bool, wanted func(*item) bool) *item {
	if c.resumed.len() > 0 {
		if i, ok := c.resumed.first(may, wanted); ok {
			return i
		}
	}
	var best *item
	for _, s := range c.buckets {
		var found *item
		_, ok := s.lanes.first(may, func(l *lane) bool {
			found, _ = l.items.first(may, wanted)
			return found != nil
		})
		if ok && (best == nil || found.sooner(best)) {
			best = found
		}
	}
	return best
}

// sooner says which of two requests of a class is first.
func (i *item) sooner(than *item) bool {
	if i.flow != than.flow {
		return i.lane.bucket.lanes.less(i.lane, than.lane)
	}
	return before(i, than)
}
