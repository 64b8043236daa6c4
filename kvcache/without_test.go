package kvcache

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// TestHasRoomWithout: what HasRoom says of a pool without some sequences is what it says once they have been
// preempted, whatever blocks they share with others and with the one that asks; and it changes nothing.
func TestHasRoomWithout(t *testing.T) {
	answers := map[bool]int{}
	rapid.Check(t, func(t *rapid.T) {
		first := Config{Blocks: rapid.IntRange(4, 16).Draw(t, "blocks"), BlockTokens: 2, PrefixCache: rapid.IntRange(0, 3).Draw(t, "cache") > 0}
		var windowed Config
		if rapid.Bool().Draw(t, "two groups") {
			windowed = Config{Blocks: rapid.IntRange(4, 16).Draw(t, "windowed blocks"), Window: rapid.IntRange(1, 6).Draw(t, "window")}
		}
		g, err := NewGroups(first, windowed)
		if err != nil {
			t.Fatal(err)
		}
		tokens := func() []int32 { return ids(0, rapid.IntRange(1, 20).Draw(t, "tokens")) } // all begin alike
		var held []Tables
		for range rapid.IntRange(1, 5).Draw(t, "sequences") {
			s, own := g.NewSequence(Root(nil, nil)), tokens()
			if _, _, err := s.Begin(own, nil); err == nil && s.Grow(len(own)) == nil {
				s.Publish(own)
				held = append(held, s)
			} else if s.Table() != nil && len(s.Table()) > 0 {
				held = append(held, s)
			}
			g.EndStep()
		}
		var without []Tables
		for _, s := range held {
			if rapid.Bool().Draw(t, "without it") {
				without = append(without, s)
			}
		}
		ask, spare := tokens(), rapid.IntRange(0, 3).Draw(t, "spare")
		asks := g.NewSequence(Root(nil, nil))
		before := fmt.Sprint(g.Stats(), g.Audit())
		said := asks.HasRoom(ask, len(ask), spare, without)
		if after := fmt.Sprint(g.Stats(), g.Audit()); after != before {
			t.Fatalf("%s before, %s after the question", before, after)
		}
		double := twins(g.Pool) || g.windowed != nil && twins(g.windowed)
		for _, s := range without {
			s.Preempt()
		}
		// Of blocks with the same name one may go that was found, and another be found then for less.
		if is := asks.HasRoom(ask, len(ask), spare, nil); said && !is || is && !said && !double {
			t.Fatalf("said %v, is %v", said, is)
		}
		if len(without) > 0 {
			answers[said]++
		}
	})
	if answers[true] == 0 || answers[false] == 0 {
		t.Errorf("answers were %v: the property is tested on nothing", answers)
	}
}

// twins reports whether two blocks carry the same name.
func twins(p *Pool) bool {
	seen := map[Hash]bool{}
	for i := range p.blocks {
		h := p.blocks[i].hash
		if h != (Hash{}) && seen[h] {
			return true
		}
		seen[h] = true
	}
	return false
}
