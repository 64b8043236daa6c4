package kvcache

import (
	"slices"
	"testing"
)

// nodes makes n entries that are on no list.
func nodes(n int) []block {
	blocks := make([]block, n)
	for i := range blocks {
		blocks[i] = block{prev: NoBlock, next: NoBlock, chain: NoBlock}
	}
	return blocks
}

func (l *list) order(blocks []block) []BlockID {
	var ids []BlockID
	for id := l.head; id != NoBlock; id = blocks[id].next {
		ids = append(ids, id)
	}
	return ids
}

func wantOrder(t *testing.T, l *list, blocks []block, want ...BlockID) {
	t.Helper()
	if got := l.order(blocks); !slices.Equal(got, want) || l.n != len(want) {
		t.Fatalf("list is %v, counts %d; want %v", got, l.n, want)
	}
	back := []BlockID{}
	for id := l.tail; id != NoBlock; id = blocks[id].prev {
		back = append(back, id)
	}
	slices.Reverse(back)
	if !slices.Equal(back, want) {
		t.Fatalf("list backwards is %v, want %v", back, want)
	}
}

func TestScenarioA1(t *testing.T) {
	blocks := nodes(5)
	l := newList()
	for id := range blocks {
		l.pushBack(blocks, BlockID(id))
	}
	wantOrder(t, &l, blocks, 0, 1, 2, 3, 4)
	if id := l.popFront(blocks); id != 0 {
		t.Fatalf("popped %d", id)
	}
	wantOrder(t, &l, blocks, 1, 2, 3, 4)
	l.remove(blocks, 2)
	wantOrder(t, &l, blocks, 1, 3, 4)
	l.pushBack(blocks, 2)
	wantOrder(t, &l, blocks, 1, 3, 4, 2)
	for _, want := range []BlockID{1, 3, 4, 2} {
		if id := l.popFront(blocks); id != want {
			t.Fatalf("popped %d, want %d", id, want)
		}
	}
	wantOrder(t, &l, blocks)
	if id := l.popFront(blocks); id != NoBlock {
		t.Fatalf("an empty list gave %d", id)
	}
}

func TestScenarioA2(t *testing.T) {
	blocks := nodes(6)
	l := newList()
	for _, ids := range [][]BlockID{{}, {0}, {4, 5}, {1, 2, 3}} {
		for _, id := range ids {
			l.pushBack(blocks, id)
		}
	}
	wantOrder(t, &l, blocks, 0, 4, 5, 1, 2, 3)
}

func TestScenarioA3(t *testing.T) {
	blocks := nodes(6)
	l := newList()
	l.pushBack(blocks, 0)
	// A run is prepended last first, so that it comes out in its own order.
	for _, run := range [][]BlockID{{4, 5}, {1, 2}} {
		for _, id := range slices.Backward(run) {
			l.pushFront(blocks, id)
		}
	}
	wantOrder(t, &l, blocks, 1, 2, 4, 5, 0)
}
