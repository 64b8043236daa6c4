package engine

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

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

		"logprobs":              {sampled, three, scored(2, -1)},
		"logprobs, constrained": {sampled, three, scored(1, -1), matching(`(ab|cd){4,9}[e-h]*z`)},
		"logprobs, penalties":   {sampled, scored(0, -1), func(q *pb.Request) { q.Sampling.PresencePenalty, q.Sampling.FrequencyPenalty = 1.5, 0.7 }},
		"logprobs, stop":        {sampled, three, scored(1, -1), matching(`([a-h]{4}x){3,9}`), func(q *pb.Request) { q.Sampling.Stop = []string{"dx", "hx"} }},
		"logprobs, min tokens":  {sampled, scored(1, -1), func(q *pb.Request) { q.Sampling.MinTokens = 11 }},
		"logprobs of all":       {sampled, three, scored(2, 1)},
		"logprobs of prompt":    {sampled, three, scored(-1, 3)},
	} {
		for _, s := range []Settings{
			{Blocks: 64, BlockTokens: 4, PrefixCache: true},
			{Blocks: 64, BlockTokens: 4, PrefixCache: true, Speculate: 4, ScoreRows: 3},
			{Blocks: 20, BlockTokens: 4, Depth: 1, ScoreRows: 1},
			{Blocks: 64, BlockTokens: 4, PrefixCache: true, PrefillChunk: 5},
		} {
			t.Run(fmt.Sprintf("%s/speculate %d depth %d chunk %d", name, s.Speculate, s.Depth, s.PrefillChunk), func(t *testing.T) {
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

// scored asks for log-probabilities, of the prompt too; -1 is none.
func scored(generated, prompt int32) func(*pb.Request) {
	return func(q *pb.Request) {
		if generated >= 0 {
			q.Sampling.Logprobs = &generated
		}
		if prompt >= 0 {
			q.Sampling.PromptLogprobs = &prompt
		}
	}
}

// equalScores reports whether two lists of log-probabilities hold the same bits.
func equalScores(a, b []*pb.Logprobs) bool {
	return slices.EqualFunc(a, b, func(a, b *pb.Logprobs) bool { return proto.Equal(a, b) })
}

// resumesAnywhere cuts q after each of its tokens. Where log-probabilities are wanted, what comes from
// elsewhere is heard again with its own.
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
		left := 0 // tokens to be drawn
		for c := range n {
			whole := r.got[key("a", c)].tokens
			at := min(cut+5*c, len(whole)) // the later choices are ahead
			moved.Generated = append(moved.Generated, &pb.TokenIds{Ids: whole[:at]})
			left += len(whole) - at
			if Repeats(q.Sampling) {
				left += min(at, 1)
			}
		}
		to := newRig(t, s, edit)
		for range 2 { // the second finds all of it cached
			clear(to.got)
			made := to.p.count.generated
			to.add(moved)
			to.finish()
			total := 0
			for c := range n {
				want, got := r.got[key("a", c)], to.got[key("a", c)]
				had := moved.Generated[c].Ids
				if Repeats(q.Sampling) {
					had = nil
				}
				if int(got.first) != len(had) || got.finish != want.finish || got.why != want.why || !slices.Equal(slices.Concat(had, got.tokens), want.tokens) {
					t.Fatalf("choice %d after %d: %v from %d on, %v %q; want %v, %v %q", c, len(had), got.tokens, got.first, got.finish, got.why, want.tokens, want.finish, want.why)
				}
				if !equalScores(got.logprobs, want.logprobs) || !equalScores(got.prompt, want.prompt) {
					t.Fatalf("choice %d of %d after %d: log-probabilities %v, prompt %v; want %v, prompt %v", c, n, cut, got.logprobs, got.prompt, want.logprobs, want.prompt)
				}
				total += len(want.tokens)
			}
			if u := last(to, n).usage; int(u.CompletionTokens) != total {
				t.Errorf("after %d: %d tokens counted, want %d", cut, u.CompletionTokens, total)
			}
			if made = to.p.count.generated - made; int(made) != left {
				t.Errorf("after %d: %d tokens generated, want %d", cut, made, left)
			}
		}
		if left == 0 && to.runner.Rows() > 0 {
			t.Errorf("computed %d rows for a request of which nothing was left", to.runner.Rows())
		}
	}
}

// TestResumedScoresReadTheCache: of a request whose log-probabilities are computed again, the prompt
// still comes from the cache, up to the block in which the scored tokens begin.
func TestResumedScoresReadTheCache(t *testing.T) {
	q := ask("a", prompt(1, 20), 12, scored(1, -1))
	r := newRig(t, Settings{Blocks: 64, BlockTokens: 4, PrefixCache: true})
	r.add(q)
	r.finish()
	whole, rows := r.tokens("a"), r.runner.Rows()
	q.Generated = []*pb.TokenIds{{Ids: whole[:9]}}
	clear(r.got)
	r.add(q)
	r.finish()
	if h := r.got["a/0"]; !slices.Equal(h.tokens, whole) {
		t.Errorf("tokens %v, want %v", h.tokens, whole)
	}
	// All but 16 of the 28 known tokens, and three more.
	if got := r.runner.Rows() - rows; got != 12+3 {
		t.Errorf("%d rows computed", got)
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
// computed as a prompt here, and its log-probabilities are those of a prompt.
func TestRealModelResumes(t *testing.T) {
	for _, c := range []struct {
		name   string
		load   func(*testing.T) *real
		tokens int
		cuts   []int
	}{{"tiny", loadTiny, 24, []int{1, 7, 16, 23}}, {"SmolLM2", loadSmolLM2, 6, []int{4}}} {
		t.Run(c.name, func(t *testing.T) {
			m := c.load(t)
			temperature, repetition := float32(0.8), float32(1.2)
			q := m.ask("a", conversation("Tell me about Paris.", "It is in France.", "And Rome?"), c.tokens, func(q *pb.Request) {
				q.Sampling.N, q.Sampling.Temperature, q.Sampling.FrequencyPenalty, q.Sampling.RepetitionPenalty = 2, &temperature, 0.5, &repetition
			})
			s := Settings{Blocks: 64, PrefixCache: true, Speculate: 3, ScoreRows: 5}
			scored(3, -1)(q)
			r := m.rig(t, s)
			r.add(q)
			r.finish()
			for _, cut := range c.cuts {
				moved := ask("a", q.Prompt, 0)
				moved.Sampling = q.Sampling
				for c := range 2 {
					whole := r.got[key("a", c)].tokens
					moved.Generated = append(moved.Generated, &pb.TokenIds{Ids: whole[:min(len(whole), cut+9*c)]})
				}
				to := m.rig(t, s)
				for _, logprobs := range []bool{true, false} { // the second finds the prompt cached
					if !logprobs {
						moved.Sampling = proto.CloneOf(q.Sampling)
						moved.Sampling.Logprobs = nil
					}
					clear(to.got)
					to.add(moved)
					to.finish()
					for c := range 2 {
						want, got := r.got[key("a", c)], to.got[key("a", c)]
						had := moved.Generated[c].Ids
						if logprobs {
							had = nil
							if !equalScores(got.logprobs, want.logprobs) {
								t.Errorf("choice %d after %d: log-probabilities %v, want %v", c, cut, got.logprobs, want.logprobs)
							}
						}
						if !slices.Equal(slices.Concat(had, got.tokens), want.tokens) || got.finish != want.finish {
							t.Errorf("choice %d after %d: %v, want %v", c, cut, got.tokens, want.tokens)
						}
					}
				}
			}
		})
	}
}
