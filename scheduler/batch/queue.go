package batch

import (
	"math"

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
	// Tokens must be computed before the first new one: the prompt, and what was generated already.
	Tokens int
	// Length is the most tokens that it may end with, prompt and output: a worker that holds fewer would
	// end it early. Where no worker holds so many one that has room for Tokens is good enough. 0 is
	// unknown.
	Length int
	// Choices is how many sequences the request needs; 0 counts as 1.
	Choices int
	// Bytes is the request's encoded size.
	Bytes int
	// Resumed requests were running before, and somebody reads them: they go first in their class, and
	// wait for no busy worker while another has room.
	Resumed bool
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

// classOf is the place of a priority among the classes.
func classOf(priority int32) int {
	return int(min(max(priority, MinPriority), MaxPriority)) - MinPriority
}

// item is a request in the queue.
type item struct {
	Request
	class int
	seq   uint64
	queue *tenantQueue
	// blocked says that the request was found to fit no worker, first at blockedMS.
	blocked   bool
	blockedMS int64
	// held says that the request was kept for a busy worker that holds its prefix, first at heldMS.
	held   bool
	heldMS int64
	// kept is the place of its matches, if they are still its; see matches.
	kept int
	// Places in tenantQueue.items, class.oldest and Batcher.deadlines.
	inTenant, inClass, inDeadlines int
}

// tenant is a tenant's account: tokens served to it (times accountScale) by weight. A tenant that had nothing in the
// queue is lifted to the account of the one served last, so that idling saves up no credit.
type tenant struct {
	name   string
	weight int64
	served int64
	queues []*tenantQueue
	queued int
}

// tenantQueue holds the requests of one tenant in one class for one model.
type tenantQueue struct {
	tenant *tenant
	class  *class
	items  heap[*item]
	at     int
}

// class holds the requests of one priority for one model.
type class struct {
	tenants heap[*tenantQueue]
	byName  map[string]*tenantQueue
	oldest  heap[*item]
}

// queue holds the requests for one model.
type queue struct {
	classes [classes]*class
	len     int
}

func newClass() *class {
	return &class{
		byName: map[string]*tenantQueue{},
		tenants: heap[*tenantQueue]{
			less: func(a, b *tenantQueue) bool {
				if a.tenant.served != b.tenant.served {
					return a.tenant.served < b.tenant.served
				}
				return a.tenant.name < b.tenant.name
			},
			at: func(q *tenantQueue) *int { return &q.at },
		},
		oldest: heap[*item]{
			less: func(a, b *item) bool {
				if a.Resumed != b.Resumed {
					return a.Resumed
				}
				if a.ArrivalMS != b.ArrivalMS {
					return a.ArrivalMS < b.ArrivalMS
				}
				return a.seq < b.seq
			},
			at: func(i *item) *int { return &i.inClass },
		},
	}
}

func newTenantQueue(t *tenant, c *class) *tenantQueue {
	return &tenantQueue{tenant: t, class: c, at: absent, items: heap[*item]{
		less: func(a, b *item) bool {
			if da, db := deadline(a), deadline(b); da != db {
				return da < db
			}
			if a.ArrivalMS != b.ArrivalMS {
				return a.ArrivalMS < b.ArrivalMS
			}
			return a.seq < b.seq
		},
		at: func(i *item) *int { return &i.inTenant },
	}}
}

func deadline(i *item) int64 {
	if i.DeadlineMS == 0 {
		return math.MaxInt64
	}
	return i.DeadlineMS
}

func (q *queue) push(i *item, t *tenant) {
	c := q.classes[i.class]
	if c == nil {
		c = newClass()
		q.classes[i.class] = c
	}
	tq := c.byName[t.name]
	if tq == nil {
		tq = newTenantQueue(t, c)
		c.byName[t.name] = tq
		t.queues = append(t.queues, tq)
	}
	i.queue = tq
	tq.items.push(i)
	c.oldest.push(i)
	if tq.at == absent {
		c.tenants.push(tq)
	}
	q.len++
}

func (q *queue) remove(i *item) {
	tq, c := i.queue, i.queue.class
	tq.items.remove(i)
	c.oldest.remove(i)
	if tq.items.len() == 0 {
		c.tenants.remove(tq)
		delete(c.byName, tq.tenant.name)
		tq.tenant.drop(tq)
	}
	q.len--
}

func (t *tenant) drop(tq *tenantQueue) {
	for n, have := range t.queues {
		if have == tq {
			last := len(t.queues) - 1
			t.queues[n] = t.queues[last]
			t.queues[last] = nil
			t.queues = t.queues[:last]
			return
		}
	}
}

// accountScale keeps the fraction that dividing by a weight would lose.
const accountScale = 1024

// cost is what tokens add to the account.
func (t *tenant) cost(tokens int64) int64 { return tokens * accountScale / t.weight }

// charge books tokens on the tenant's account and moves it in every queue that it waits in.
func (t *tenant) charge(tokens int64) {
	t.served += t.cost(tokens)
	for _, tq := range t.queues {
		tq.class.tenants.fix(tq)
	}
}

// next is the request to place next; nil if there is none. A class counts by its number, and its
// oldest request by that number less the steps it has aged. The naive way, to sort everything that
// waits by age and class at every instant, costs a pass over the queue for each request placed.
func (q *queue) next(nowMS, ageStepMS int64) *item {
	var best *item
	bestLevel := int64(math.MaxInt64)
	bestAged := false
	for number, c := range q.classes {
		if c == nil || c.oldest.len() == 0 {
			continue
		}
		oldest := c.oldest.top()
		steps := max(0, nowMS-oldest.ArrivalMS) / ageStepMS
		level := int64(number) - steps
		first := steps > 0 || oldest.Resumed
		switch {
		case first && (level < bestLevel || level == bestLevel && (!bestAged || oldest.ArrivalMS < best.ArrivalMS)):
			best, bestLevel, bestAged = oldest, level, true
		case !first && level < bestLevel:
			best, bestLevel, bestAged = c.tenants.top().items.top(), level, false
		}
	}
	return best
}
