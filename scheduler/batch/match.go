package batch

import (
	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/scheduler/prefix"
)

// Matcher knows which workers hold the beginning of a prompt.
type Matcher interface {
	// Match appends to dst one match for each worker that holds the first of the blocks, at least.
	Match(dst []prefix.Match, hashes []kvcache.Hash) []prefix.Match
}

var _ Matcher = (*prefix.Index)(nil)

const (
	// matchesKept bounds the requests that wait with their matches at hand; matchMS is how long these
	// are good.
	matchesKept = 256
	matchMS     = 100
)

// matches remembers what the Matcher said of the requests that plans step over again and again.
type matches struct {
	bySlot []*member
	kept   [matchesKept]kept
	next   int
	// stamp numbers the prompt that is being placed; members have what it would find there.
	stamp    uint64
	asked    []*member
	promised []promised
}

type kept struct {
	item *item
	atMS int64
	list []prefix.Match
}

// ask learns which workers hold a part of the request's prompt, or soon will, and returns these.
func (b *Batcher) ask(i *item, nowMS int64) []*member {
	x := &b.matches
	if b.settings.Matcher == nil || len(i.Hashes) == 0 {
		return b.answer(i, nil, nowMS)
	}
	k := &x.kept[i.kept]
	if k.item != i || nowMS-k.atMS > matchMS {
		if k.item != i {
			i.kept = x.next
			k = &x.kept[x.next]
			x.next = (x.next + 1) % matchesKept
		}
		k.item, k.atMS = i, nowMS
		k.list = b.settings.Matcher.Match(k.list[:0], i.Hashes)
	}
	return b.answer(i, k.list, nowMS)
}

// askOnly is ask that leaves nothing behind for plans.
func (b *Batcher) askOnly(i *item, nowMS int64) {
	var list []prefix.Match
	if b.settings.Matcher != nil && len(i.Hashes) > 0 {
		list = b.settings.Matcher.Match(nil, i.Hashes)
	}
	b.answer(i, list, nowMS)
}

// answer notes on the workers what the prompt would find there.
func (b *Batcher) answer(i *item, list []prefix.Match, nowMS int64) []*member {
	x := &b.matches
	x.stamp++
	x.asked = x.asked[:0]
	for _, match := range list {
		if m := x.member(match.Worker); m != nil {
			m.asked, m.found = x.stamp, match
			x.asked = append(x.asked, m)
		}
	}
	x.promised = b.promises.find(x.promised[:0], i.Hashes, nowMS)
	for _, p := range x.promised {
		if !b.asked(p.member) {
			p.member.asked, p.member.found = x.stamp, prefix.Match{Worker: p.member.Cache}
			x.asked = append(x.asked, p.member)
		}
		if more := p.blocks - p.member.found.Blocks(); more > 0 {
			p.member.found.Device += more
		}
	}
	return x.asked
}

// asked says whether the worker is among those that ask returned last.
func (b *Batcher) asked(m *member) bool { return m.asked == b.matches.stamp }

// found is what the prompt that was asked for last would find on the worker.
func (b *Batcher) found(m *member) prefix.Match {
	if b.asked(m) {
		return m.found
	}
	return prefix.Match{Worker: m.Cache}
}

// member is the one with this name in the Matcher's answers; nil if there is none.
func (x *matches) member(name prefix.Worker) *member {
	if slot := name.Slot(); slot < len(x.bySlot) {
		if m := x.bySlot[slot]; m != nil && m.Cache == name {
			return m
		}
	}
	return nil
}

func (x *matches) join(m *member) {
	slot := m.Cache.Slot()
	if m.Cache == 0 {
		return
	}
	if more := slot + 1 - len(x.bySlot); more > 0 {
		x.bySlot = append(x.bySlot, make([]*member, more)...)
	}
	x.bySlot[slot] = m
}

func (x *matches) leave(m *member) {
	if x.member(m.Cache) == m {
		x.bySlot[m.Cache.Slot()] = nil
	}
}

// forgetMatches lets go of a request that left the queue.
func (b *Batcher) forgetMatches(i *item) {
	if k := &b.matches.kept[i.kept]; k.item == i {
		k.item = nil
	}
}
