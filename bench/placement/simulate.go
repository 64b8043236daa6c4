package main

import (
	"container/heap"
	"fmt"
	"slices"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/scheduler/batch"
	"github.com/quire-serve/quire/scheduler/prefix"
)

// result is one run.
type result struct {
	policy batch.Policy
	load   float64
	ttftUS []int64 // Sorted.
	// hit and asked are prompt tokens found in caches, and all; most and least what the busiest and the
	// idlest worker computed.
	hit, asked  int64
	most, least int64
	// endUS is when the last first token came.
	endUS int64
}

// event happens at a time; n keeps those of one time in order.
type event struct {
	atUS int64
	n    int
	do   func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].atUS < e[j].atUS || e[i].atUS == e[j].atUS && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// simulation is one run of the real batcher and index over simulated workers.
type simulation struct {
	model    model
	nowUS    int64
	n        int
	events   events
	batcher  *batch.Batcher
	index    *prefix.Index
	workers  map[string]*worker
	requests []traced
	planned  bool
	number   uint64
	load     float64
	result   result
}

// startMS is an arbitrary time of the clock.
const startMS = 1_000_000

func simulate(m model, requests []traced, policy batch.Policy, load float64) result {
	s := &simulation{
		model: m, index: prefix.New(prefix.Settings{}), workers: map[string]*worker{}, requests: requests, load: load,
		result: result{policy: policy, load: load},
	}
	s.batcher = batch.New(batch.Settings{Policy: policy, Matcher: s.index})
	for n := range m.workers {
		name, err := s.index.Add()
		if err != nil {
			panic(err)
		}
		w := newWorker(&s.model, fmt.Sprintf("w%03d", n), name)
		s.workers[w.id] = w
		s.batcher.Join(batch.Worker{
			ID: w.id, Model: "m", Cache: name, ContextTokens: m.blocks * blockTokens, BlockTokens: blockTokens,
			TotalBlocks: m.blocks, MaxSequences: m.maxSequences, MaxBatchTokens: m.maxBatchTokens,
		}, true, s.nowMS())
		s.every(250_000, func() { s.report(w) })
	}
	for n := range requests {
		s.at(int64(float64(requests[n].arrivalUS)/load), func() { s.arrive(n) })
	}
	for len(s.result.ttftUS) < len(requests) {
		e := heap.Pop(&s.events).(event)
		s.nowUS = e.atUS
		e.do()
	}
	s.result.endUS = s.nowUS
	first := true
	for _, w := range s.workers {
		s.result.hit += w.hit
		s.result.asked += w.asked
		work := w.asked - w.hit
		s.result.most = max(s.result.most, work)
		if first || work < s.result.least {
			s.result.least = work
		}
		first = false
	}
	slices.Sort(s.result.ttftUS)
	return s.result
}

func (s *simulation) nowMS() int64 { return startMS + s.nowUS/1000 }

func (s *simulation) at(us int64, do func()) {
	s.n++
	heap.Push(&s.events, event{us, s.n, do})
}

func (s *simulation) after(us int64, do func()) { s.at(s.nowUS+us, do) }

func (s *simulation) every(us int64, do func()) {
	s.after(us, func() {
		do()
		s.every(us, do)
	})
}

func (s *simulation) arrive(n int) {
	r := &s.requests[n]
	s.batcher.Push(batch.Request{
		ID: fmt.Sprint(n), Model: "m", Tenant: "t", ArrivalMS: s.nowMS(), Tokens: r.input, Bytes: 3 * r.input, Hashes: r.hashes,
	})
	s.kick()
}

// kick plans at most once a millisecond, as the leader does.
func (s *simulation) kick() {
	if s.planned {
		return
	}
	s.planned = true
	s.after(1000, func() {
		s.planned = false
		s.number++
		number := s.number
		for _, a := range s.batcher.Plan(s.nowMS(), number, batch.Limits{Requests: 1000, Bytes: 2 << 20}) {
			w := s.workers[a.WorkerID]
			var n int
			if _, err := fmt.Sscan(a.Request.ID, &n); err != nil {
				panic(err)
			}
			s.after(s.model.networkUS, func() {
				w.waiting = append(w.waiting, &sequence{traced: &s.requests[n], n: n})
				w.index = number
				s.step(w)
			})
		}
	})
}

// step runs the worker until it has nothing to do.
func (s *simulation) step(w *worker) {
	if w.stepping {
		return
	}
	us, end := w.step()
	if us == 0 {
		return
	}
	w.stepping = true
	s.report(w)
	s.after(us, func() {
		w.stepping = false
		for _, q := range end() {
			s.result.ttftUS = append(s.result.ttftUS, s.nowUS-int64(float64(q.arrivalUS)/s.load))
		}
		s.step(w)
		if !w.stepping {
			s.report(w)
		}
	})
}

// report sends a heartbeat and what the cache took up and lost.
func (s *simulation) report(w *worker) {
	load, all := w.load(), w.news
	w.news = nil
	s.after(s.model.networkUS, func() {
		for _, n := range all {
			if one := []kvcache.Hash{n.hash}; n.stored {
				s.index.Stored(w.cacheName, kvcache.Device, one)
			} else {
				s.index.Removed(w.cacheName, kvcache.Device, one)
			}
		}
		s.batcher.Report(w.id, load, s.nowMS())
		if s.batcher.Len() > 0 {
			s.kick()
		}
	})
}
