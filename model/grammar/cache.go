package grammar

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// ErrBusy means that as many compiles wait as may. Another time it would be taken.
var ErrBusy = errors.New("grammar: too many wait to be compiled")

// A Gate bounds how many compiles run at once, and how many wait for that. Caches may share one. It
// is safe for concurrent use.
type Gate struct {
	places  chan struct{} // of those that run
	waiting chan struct{} // of both
}

// NewGate lets running compiles run and waiting more wait.
func NewGate(running, waiting int) *Gate {
	return &Gate{places: make(chan struct{}, running), waiting: make(chan struct{}, running+waiting)}
}

// Do does one compile when there is a place. Errors are its own, ErrBusy, and the context's cause.
func (g *Gate) Do(ctx context.Context, compile func() error) error {
	if g == nil {
		return compile()
	}
	select {
	case g.waiting <- struct{}{}:
	default:
		return ErrBusy
	}
	defer func() { <-g.waiting }()
	select {
	case g.places <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-g.places }()
	return compile()
}

// A Cache keeps the grammars of one vocabulary by their Spec, the last used ones, so that requests
// with the same schema compile it once and share its masks; what can't be compiled is kept too, for
// it never can be. It is safe for concurrent use.
type Cache struct {
	vocabulary *Vocabulary
	limits     Limits
	gate       *Gate
	count      int
	bytes      int

	mu      sync.Mutex
	entries map[Spec]*entry
	order   []*entry // by last use, the oldest first
}

type entry struct {
	spec    Spec
	done    chan struct{}
	grammar *Grammar // set when done is closed, nil if it failed
	err     error
}

// NewCache keeps at most count grammars, and of these the last used that together hold no more
// than bytes in memory (but always the last). It compiles at once what passes the gate; nil passes
// everything.
func NewCache(v *Vocabulary, limits Limits, count, bytes int, gate *Gate) *Cache {
	return &Cache{vocabulary: v, limits: limits, gate: gate, count: max(count, 1), bytes: bytes, entries: map[Spec]*entry{}}
}

// Compile returns the grammar of the spec, from the cache if it is there. Callers that ask for the
// same one at the same time wait for the first. Errors are those of Compile and ErrBusy.
func (c *Cache) Compile(ctx context.Context, spec Spec) (*Grammar, error) {
	for {
		c.mu.Lock()
		e, ok := c.entries[spec]
		if !ok {
			e = &entry{spec: spec, done: make(chan struct{})}
			c.entries[spec] = e
			c.order = append(c.order, e)
			c.mu.Unlock()
			return c.compile(ctx, e)
		}
		i := slices.Index(c.order, e)
		c.order = append(slices.Delete(c.order, i, i+1), e)
		c.mu.Unlock()
		select {
		case <-e.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if e.err == nil || e.lasting() {
			return e.grammar, e.err
		}
		// The first gave up for its own context's sake, or found no place: try again.
		if errors.Is(e.err, ErrBusy) {
			return nil, e.err
		}
	}
}

func (c *Cache) compile(ctx context.Context, e *entry) (*Grammar, error) {
	e.err = c.gate.Do(ctx, func() (err error) {
		e.grammar, err = Compile(ctx, e.spec, c.vocabulary, c.limits)
		return err
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	close(e.done)
	if e.err != nil && !e.lasting() {
		c.remove(e)
		return nil, e.err
	}
	c.trim(e)
	return e.grammar, e.err
}

// lasting reports that the entry failed, and always would.
func (e *entry) lasting() bool { return errors.Is(e.err, ErrUnsupported) || errors.Is(e.err, ErrLimit) }

// bytes is about what a finished entry holds.
func (e *entry) bytes() int {
	n := len(e.spec.Source)
	if e.grammar != nil {
		n += e.grammar.Bytes()
	}
	return n
}

// trim takes out the oldest until the rest is within the bounds; keep stays. Entries under
// compilation belong to their compilers.
func (c *Cache) trim(keep *entry) {
	total := 0
	for _, e := range c.order {
		if e.finished() {
			total += e.bytes()
		}
	}
	for _, e := range slices.Clone(c.order) {
		if len(c.order) <= c.count && total <= c.bytes {
			return
		}
		if e != keep && e.finished() {
			total -= e.bytes()
			c.remove(e)
		}
	}
}

func (c *Cache) remove(e *entry) {
	delete(c.entries, e.spec)
	if i := slices.Index(c.order, e); i >= 0 {
		c.order = slices.Delete(c.order, i, i+1)
	}
}

func (e *entry) finished() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}
