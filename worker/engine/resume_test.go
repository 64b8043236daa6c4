package engine

import (
	"fmt"
	"slices"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// TestResumes: cut anywhere, each choice elsewhere, a request goes on to exactly the tokens and the
// ends that it would have had, and what had ended ends again at once.
func TestResumes(t *testing.T) {
	one := float32(1)
	sampled := func(q *pb.Request) { q.Sampling.Temperature = &one }
	three := func(q *pb.Request) { q.Sampling.N = 3 }
	eos := func(_ *enginetest.Config, m *Model) {
		m.EOS = nil
		for i := int32(0); i < 100; i += 12 {
			m.EOS = append(m.EOS, i)
		}
	}
	for name, edits := range map[string][]func(*pb.Request){
		"greedy":           nil,
		"sampled":          {sampled},
		"choices":          {sampled, three},
		"penalties":        {sampled, three, func(q *pb.Request) { q.Sampling.PresencePenalty, q.Sampling.FrequencyPenalty = 1.5, 0.7 }},
		"min tokens":       {sampled, three, func(q *pb.Request) { q.Sampling.MinTokens = 11 }},
		"stop ids":         {sampled, three, func(q *pb.Request) { q.Sampling.StopTokenIds, q.Sampling.IgnoreEos = []int32{3, 17, 40, 41, 77}, true }},
		"no end":           {sampled, three, func(q *pb.Request) { q.Sampling.IgnoreEos = true }},
		"logit bias":       {sampled, func(q *pb.Request) { q.Sampling.LogitBias = map[int32]float32{0: -100, 12: -100, 24: -100, 5: 3} }},
		"constrained":      {sampled, three, matching(`(ab|cd){4,9}[e-h]*z`)},
		"stop inside text": {sampled, three, matching(`([a-h]{4}x){3,9}`), func(q *pb.Request) { q.Sampling.Stop = []string{"dx", "hx"} }},
	} {
		for _, s := range []Settings{{Blocks: 64, BlockTokens: 4, PrefixCache: true}, {Blocks: 64, BlockTokens: 4, PrefixCache: true, Speculate: 4}, {Blocks: 20, BlockTokens: 4, Depth: 1}} {
			t.Run(fmt.Sprintf("%s/speculate %d depth %d", name, s.Speculate, s.Depth), func(t *testing.T) {
				q := ask("a", prompt(1, 10), 25, edits...)
				resumesAnywhere(t, q, s, eos)
			})
		}
	}
	// A stop string of which the first half was generated elsewhere.
	q := ask("a", prompt(1, 10), 25, sampled, func(q *pb.Request) { q.Sampling.IgnoreEos = true })
	r := newRig(t, Settings{Blocks: 64})
	r.add(q)
	r.finish()
	whole := r.tokens("a")
	q.Sampling.Stop = []string{letter(whole[14]) + letter(whole[15]) + letter(whole[16]) + letter(whole[17])}
	resumesAnywhere(t, q, Settings{Blocks: 64}, eos)
}

func resumesAnywhere(t *testing.T, q *pb.Request, s Settings, edit func(*enginetest.Config, *Model)) {
	t.Helper()
	r := newRig(t, s, edit)
	r.add(q)
	r.finish()
	r.want(q)
	n := max(1, int(q.Sampling.N))
	longest := 0
	for c := range n {
		longest = max(longest, len(r.got[key("a", c)].tokens))
	}
	for cut := range longest + 1 {
		moved := ask("a", q.Prompt, 0)
		moved.Sampling = q.Sampling
		known := 0
		for c := range n {
			whole := r.got[key("a", c)].tokens
			at := min(cut+5*c, len(whole)) // the later choices are ahead
			moved.Generated = append(moved.Generated, &pb.TokenIds{Ids: whole[:at]})
			known += at
		}
		to := newRig(t, s, edit)
		to.add(moved)
		to.finish()
		total := 0
		for c := range n {
			want, got := r.got[key("a", c)], to.got[key("a", c)]
			had := moved.Generated[c].Ids
			if int(got.first) != len(had) || got.finish != want.finish || got.why != want.why || !slices.Equal(slices.Concat(had, got.tokens), want.tokens) {
				t.Fatalf("choice %d after %d: %v from %d on, %v %q; want %v, %v %q", c, len(had), got.tokens, got.first, got.finish, got.why, want.tokens, want.finish, want.why)
			}
			total += len(want.tokens)
		}
		if u := last(to, n).usage; int(u.CompletionTokens) != total {
			t.Errorf("after %d: %d tokens counted, want %d", cut, u.CompletionTokens, total)
		}
		if made := int(to.p.count.generated); made != total-known {
			t.Errorf("after %d: %d tokens generated, want %d", cut, made, total-known)
		}
		if known == total && to.runner.Rows() > 0 {
			t.Errorf("computed %d rows for a request of which nothing was left", to.runner.Rows())
		}
	}
}

// last is the choice whose event was the request's last.
func last(r *rig, n int) *heard {
	for c := range n {
		if h := r.got[key("a", c)]; h.done {
			return h
		}
	}
	r.t.Fatal("the request has no end")
	return nil
}

// TestRealModelResumes: the same over a real device, where what was decoded one by one elsewhere is
// computed as a prompt here.
func TestRealModelResumes(t *testing.T) {
	m := loadTiny(t)
	half := float32(0.8)
	q := m.ask("a", conversation("Tell me about Paris.", "It is in France.", "And Rome?"), 24, func(q *pb.Request) {
		q.Sampling.N, q.Sampling.Temperature, q.Sampling.FrequencyPenalty, q.Sampling.RepetitionPenalty = 2, &half, 0.5, new(float32)
		*q.Sampling.RepetitionPenalty = 1.2
	})
	s := Settings{Blocks: 64, PrefixCache: true, Speculate: 3}
	r := m.rig(t, s)
	r.add(q)
	r.finish()
	for _, cut := range []int{1, 7, 16, 23} {
		moved := ask("a", q.Prompt, 0)
		moved.Sampling = q.Sampling
		for c := range 2 {
			whole := r.got[key("a", c)].tokens
			moved.Generated = append(moved.Generated, &pb.TokenIds{Ids: whole[:min(len(whole), cut+9*c)]})
		}
		to := m.rig(t, s)
		to.add(moved)
		to.finish()
		for c := range 2 {
			want, got := r.got[key("a", c)], to.got[key("a", c)]
			if !slices.Equal(slices.Concat(moved.Generated[c].Ids, got.tokens), want.tokens) || got.finish != want.finish {
				t.Errorf("choice %d after %d: %v, want %v", c, len(moved.Generated[c].Ids), got.tokens, want.tokens)
			}
		}
	}
}
