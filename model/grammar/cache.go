package grammar

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// A Cache keeps the grammars of one vocabulary by their Spec, the last used ones, so that requests
// with the same schema compile it once and share its masks. It is safe for concurrent use.
type Cache struct {
	vocabulary *Vocabulary
	limits     Limits
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
// than bytes in memory (but always the last).
func NewCache(v *Vocabulary, limits Limits, count, bytes int) *Cache {
	return &Cache{vocabulary: v, limits: limits, count: max(count, 1), bytes: bytes, entries: map[Spec]*entry{}}
}

// Compile returns the grammar of the spec, from the cache if it is there. Callers that ask for the
// same one at the same time wait for the first. Failures are not kept.
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
		if e.err == nil {
			return e.grammar, nil
		}
		if errors.Is(e.err, ErrUnsupported) || errors.Is(e.err, ErrLimit) {
			return nil, e.err
		}
		// The first gave up for its own context's sake: try again.
	}
}

func (c *Cache) compile(ctx context.Context, e *entry) (*Grammar, error) {
	e.grammar, e.err = Compile(ctx, e.spec, c.vocabulary, c.limits)
	c.mu.Lock()
	defer c.mu.Unlock()
	close(e.done)
	if e.err != nil {
		c.remove(e)
		return nil, e.err
	}
	c.trim(e)
	return e.grammar, nil
}

// trim takes out the oldest until the rest is within the bounds; keep stays. Entries under
// compilation belong to their compilers.
func (c *Cache) trim(keep *entry) {
	total := 0
	for _, e := range c.order {
		if e.finished() {
			total += e.grammar.Bytes()
		}
	}
	for _, e := range slices.Clone(c.order) {
		if len(c.order) <= c.count && total <= c.bytes {
			return
		}
		if e != keep && e.finished() {
			total -= e.grammar.Bytes()
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
