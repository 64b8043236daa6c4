package engine

import (
	"slices"
	"strings"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

func without(words ...string) func(*pb.Request) {
	return func(q *pb.Request) { q.Sampling.BadWords = words }
}

// TestBadWordsGiveWay: where bad words forbid all that a constraint or the allowed tokens leave, these go
// first; where they leave nothing but ends, these are drawn before min_tokens too, and do not count.
func TestBadWordsGiveWay(t *testing.T) {
	r := newRig(t, Settings{Blocks: 24, BlockTokens: 4, MaxSequences: 6}, func(_ *enginetest.Config, m *Model) {
		m.Vocab, m.EOS = 4, []int32{3}
	})
	p := []int32{0, 1}
	reqs := []*pb.Request{
		ask("constraint", p, 9, matching("bb[bc]"), without("b", "cc")),
		ask("all", p, 9, without("a", "b", "c", "d"), func(q *pb.Request) { q.Sampling.IgnoreEos = true }),
		ask("allowed", p, 5, func(q *pb.Request) { q.Sampling.AllowedTokenIds = []int32{1, 2} }, without("b", "cc")),
		ask("least", p, 9, func(q *pb.Request) { q.Sampling.MinTokens = 5 }, without("a", "b", "c")),
	}
	for _, q := range reqs {
		r.add(q)
	}
	r.finish()
	for _, q := range reqs {
		r.want(q)
	}
	for name, want := range map[string][]int32{
		"constraint": {1, 1, 2},
		"least":      {3, 3, 3, 3, 3, 3}, // the end is drawn, and counts behind min_tokens
	} {
		got := r.got[key(name, 0)].tokens
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if n := len(r.got[key("all", 0)].tokens); n != 9 {
		t.Errorf("all: %d tokens", n)
	}
	if got := r.got[key("allowed", 0)].tokens; slices.Contains(got, 0) || slices.Contains(got, 3) {
		t.Errorf("allowed: %v", got)
	}
}

// TestBadWordsOfARealModel: words that a model would say are said no more, alone and with guesses.
func TestBadWordsOfARealModel(t *testing.T) {
	m := loadTiny(t)
	tokens := func(words []string, speculate int) []int32 {
		r := m.rig(t, Settings{Blocks: 64, BlockTokens: 16, MaxSequences: 4, Speculate: speculate})
		r.add(m.ask("r", conversation("Tell me a story"), 60, without(words...), func(q *pb.Request) { q.Sampling.IgnoreEos = true }))
		r.finish()
		return r.got[key("r", 0)].tokens
	}
	said := strings.Fields(m.Tokenizer.Decode(tokens(nil, 0), true))
	var words []string
	for _, w := range said[:min(6, len(said))] {
		words = append(words, strings.Trim(w, ".,!?"))
	}
	plain, guessed := tokens(words, 0), tokens(words, 4)
	if !slices.Equal(plain, guessed) {
		t.Errorf("%v with guesses, %v without", guessed, plain)
	}
	for _, w := range words {
		for _, ids := range m.Tokenizer.Spellings(w) {
			if holds(plain, ids) {
				t.Errorf("%q is said: %q", w, m.Tokenizer.Decode(plain, true))
			}
		}
	}
	t.Logf("%q without %q is %q", said, words, m.Tokenizer.Decode(plain, true))
}

// holds reports whether ids lies in list.
func holds(list, ids []int32) bool {
	for i := range list {
		if len(list)-i >= len(ids) && slices.Equal(list[i:i+len(ids)], ids) {
			return true
		}
	}
	return false
}
