package engine

import (
	"context"
	"time"

	"github.com/quire-serve/quire/kvcache"
)

// Peers bring blocks from workers that handed requests over.
type Peers interface {
	// Fetch begins to fill f.Pages and returns at once. It calls done once, from another goroutine, with
	// which of the pages are whole, and touches none after that.
	Fetch(f Fetch, done func(whole []bool))
}

// Fetch is what is wanted for one request of the worker that handed it over.
type Fetch struct {
	Source, RequestID string
	// Hashes name the blocks whose pages Pages take. There may be none: the source is asked all the same,
	// so that it knows that nobody needs it for the request any more.
	Hashes []kvcache.Hash
	Pages  [][]byte
	// Within is how long computing the blocks would take: then fetching has had its time. 0 is unknown.
	Within time.Duration
}

const (
	// maxFetches is how many requests' blocks are on their way at once; the other requests wait their
	// turn, as their prompts would.
	maxFetches = 4
	// fetchLatency is assumed for the way to another worker and back, a new connection included. What is
	// computed as soon is not fetched.
	fetchLatency = 5 * time.Millisecond
)

// fetch reports whether blocks blocks of another worker are worth asking for. What the network carries
// is not known before; so a fetch may take as long as computing, and costs twice that at most.
func (c Costs) fetch(blocks, blockTokens int) bool {
	return blocks > 0 && fetchLatency+c.Step+time.Duration(2*blocks)*c.Page <= time.Duration(blocks*blockTokens)*c.Token || c == Costs{} && blocks > 0
}

// arrival is the end of a fetch.
type arrival struct {
	request *request
	hashes  []kvcache.Hash
	whole   []bool
}

// ask queues a request whose blocks another worker may have. Until they are here, or are not coming, it
// waits and others run.
func (p *planner) ask(r *request) {
	if l := p.lower; l != nil && l.Peers != nil && r.source != "" {
		r.fetching = true
		l.asked = append(l.asked, r)
	}
}

// startFetches asks for blocks in the order of the requests, as far as there is room for them. Who could
// start in this plan has its blocks pinned by now, so that they are not pushed out.
func (p *planner) startFetches() {
	l := p.lower
	if l == nil {
		return
	}
	l.replan = false
	for len(l.asked) > 0 && l.flying < maxFetches {
		r := l.asked[0]
		f, ok := p.wanted(r)
		if !ok {
			return
		}
		l.asked[0] = nil
		l.asked = l.asked[1:]
		l.flying++
		if len(f.Hashes) == 0 {
			r.fetching, l.replan = false, true
		}
		l.Peers.Fetch(f, func(whole []bool) { p.arrived(arrival{r, f.Hashes, whole}) })
	}
}

// wanted takes room in host memory for the blocks of r that are not here. false means that there is too
// little now, and more once what is on its way has come or was copied up.
func (p *planner) wanted(r *request) (f Fetch, ok bool) {
	l := p.lower
	f = Fetch{Source: r.source, RequestID: r.id}
	for _, s := range r.choices {
		if s.state != stateWaiting {
			continue
		}
		first := p.lookup(s) / p.BlockTokens
		// The block of the last token is computed in any case.
		hashes := s.kv.Hashes()[:min(s.readable(), len(s.tokens)-1)/p.BlockTokens]
		if first >= len(hashes) {
			continue
		}
		_, below := l.Cache.Match(hashes[first:])
		first += below
		if !l.Costs.fetch(len(hashes)-first, p.BlockTokens) {
			continue
		}
		for i := first; i < len(hashes); i++ {
			parent := s.root
			if i > 0 {
				parent = hashes[i-1]
			}
			page := l.Cache.Receive(hashes[i], parent, s.tenant)
			if page != nil {
				f.Hashes, f.Pages = append(f.Hashes, hashes[i]), append(f.Pages, page)
				continue
			}
			if _, here := l.Cache.Match(hashes[i : i+1]); here > 0 {
				continue // a sibling's, or on its way for another request
			}
			if l.flying == 0 && len(l.loading) == 0 {
				break // never room for more: the rest is computed
			}
			for _, h := range f.Hashes {
				l.Cache.Commit(h, false)
			}
			return f, false
		}
	}
	f.Within = time.Duration(len(f.Hashes)*p.BlockTokens) * l.Costs.Token
	return f, true
}

// arrive lets a request go on with what has come for it.
func (p *planner) arrive(a arrival) {
	l := p.lower
	l.flying--
	a.request.fetching = false
	for i, h := range a.hashes {
		l.Cache.Commit(h, a.whole[i] && (a.request.live > 0 || !l.Transit))
	}
}

// publishFull names the blocks that the last steps filled, as the next step would have.
func (p *planner) publishFull() {
	for _, s := range p.running {
		if known := min(s.computed, len(s.tokens)); known >= s.published+p.BlockTokens {
			s.kv.Publish(s.tokens[:known])
			s.published = known - known%p.BlockTokens
		}
	}
}

// readBlock copies a block's page to dst. Only while nothing is computed: then every block that has a
// name has its content, and nothing writes to it.
func (p *planner) readBlock(h kvcache.Hash, dst []byte) bool {
	l := p.lower
	if l == nil || p.hold != holdAll || p.inFlight() > 0 {
		return false
	}
	p.publishFull()
	id := p.pool.Find(h)
	if id == kvcache.NoBlock {
		return l.Cache.Copy(h, dst)
	}
	if err := l.Pages.Read(int32(id), dst); err != nil {
		l.failed("out", err)
		return false
	}
	return true
}

// Freeze ends computing for good and returns when no step is in flight and its events are out. What has
// not ended stays where it is, for others to go on with, and [Engine.ReadBlock] finds its blocks; what
// is new is refused.
func (e *Engine) Freeze(ctx context.Context) error {
	return e.await(ctx, func() {
		e.closed = true
		e.send(command{hold: &holdCommand{hold: holdAll}})
	}, func() bool { return len(e.inbox) == 0 && e.plan.inFlight() == 0 })
}

// reading asks for a block's page.
type reading struct {
	hash  kvcache.Hash
	dst   []byte
	found chan bool // capacity 1
}

// ReadBlock copies the page of a block to dst, which is as large as a page, and reports whether the
// block is on the device or in host memory. It finds nothing before Freeze has returned, and needs the
// loop to run. After an error dst may still be written to.
func (e *Engine) ReadBlock(ctx context.Context, h kvcache.Hash, dst []byte) (found bool, err error) {
	r := &reading{hash: h, dst: dst, found: make(chan bool, 1)}
	e.mu.Lock()
	e.send(command{read: r})
	e.mu.Unlock()
	select {
	case found = <-r.found:
		return found, nil
	case <-e.gone:
		return false, ErrGone
	case <-ctx.Done():
		return false, ctx.Err()
	}
}
