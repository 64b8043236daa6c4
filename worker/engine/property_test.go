package engine

import (
	"fmt"
	"testing"
	"time"

	"github.com/quire-serve/quire/device"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
	"pgregory.net/rapid"
)

// TestOutputIsUndisturbed runs random requests, arrivals and aborts through random, mostly tiny,
// engines. Properties: every request gives exactly the tokens that it would have given alone, each once;
// one that is aborted or given back a prefix of them; every choice ends once; the device finds no page
// table wrong; no block is left behind; it always comes to an end.
func TestOutputIsUndisturbed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bt := rapid.SampledFrom([]int{1, 4, 16}).Draw(t, "block tokens")
		s := Settings{
			BlockTokens:  bt,
			Blocks:       rapid.IntRange(2, 24).Draw(t, "blocks"),
			MaxSequences: rapid.IntRange(1, 8).Draw(t, "sequences"),
			PrefixCache:  rapid.Bool().Draw(t, "cache"),
			PrefillChunk: rapid.SampledFrom([]int{0, 1, 7}).Draw(t, "chunk"),
			ScoreRows:    rapid.IntRange(1, 5).Draw(t, "score rows"),
			Depth:        rapid.IntRange(1, 2).Draw(t, "depth"),
			ReturnAfter:  rapid.SampledFrom([]time.Duration{-1, time.Second, 30 * time.Second}).Draw(t, "return after"),
		}
		s.Speculate = rapid.SampledFrom([]int{0, 1, 4}).Draw(t, "speculate")
		// With few tokens guesses are often right.
		vocab := rapid.SampledFrom([]int{testVocab, 4, 2}).Draw(t, "vocabulary")
		s.MaxBatchTokens = s.MaxSequences + rapid.IntRange(0, 40).Draw(t, "budget")
		s.DecodeShare = rapid.SampledFrom([]float64{-1, 0.3, 0.8}).Draw(t, "decode share")
		for _, name := range []string{"a", "b"} {
			if rapid.IntRange(0, 2).Draw(t, "bound") == 0 {
				s.Tenants = append(s.Tenants, Tenant{name, rapid.IntRange(1, s.Blocks).Draw(t, "tenant blocks")})
			}
		}
		window := 0
		if rapid.IntRange(0, 2).Draw(t, "windowed") == 0 {
			window = rapid.IntRange(1, 100).Draw(t, "window")
			if rapid.Bool().Draw(t, "mixed") {
				s.WindowBlocks = rapid.IntRange(2, 24).Draw(t, "window blocks")
			}
		}
		hiccups := drawHiccups(t)
		r := newRig(t, s, func(c *enginetest.Config, m *Model) {
			m.ContextLength, m.Window = 200, window
			m.Vocab = vocab
			m.EOS = endings(vocab)
			hiccups(c)
		})
		if rapid.Bool().Draw(t, "timed") {
			speeds := rapid.SliceOfN(rapid.Int64Range(1, 100_000), 1, 7).Draw(t, "row µs")
			n := 0
			r.cost = func(b *device.Batch) int64 {
				n++
				return int64(len(b.Tokens)) * speeds[n%len(speeds)]
			}
		}
		if rapid.IntRange(0, 2).Draw(t, "preempted") == 0 {
			r.preemptEach() // before every step
		}
		if rapid.Bool().Draw(t, "always guess") {
			r.always()
		}
		var asked []*pb.Request
		aborted := map[string]bool{}
		n := rapid.IntRange(1, 10).Draw(t, "requests")
		for len(asked) < n {
			name := rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "tenant")
			_, context := r.p.tenant(name, r.p.context)
			q := drawRequest(t, len(asked), context, vocab, r.model.Window)
			if q == nil {
				n--
				continue
			}
			q.Tenant = name
			asked = append(asked, q)
			r.add(q)
			for range rapid.IntRange(0, 12).Draw(t, "steps") {
				r.step()
				if err := r.p.pool.Audit(); err != nil {
					t.Fatal(err)
				}
			}
			if rapid.IntRange(0, 5).Draw(t, "abort") == 0 {
				id := asked[rapid.IntRange(0, len(asked)-1).Draw(t, "whom")].Id
				if r.find(id) != nil {
					aborted[id] = true
					r.abort(id)
				}
			}
		}
		r.finish()
		for _, q := range asked {
			if aborted[q.Id] || r.returned(q) {
				r.wantPrefix(q)
			} else {
				r.want(q)
			}
			r.wantScores(q)
		}
	})
}

// drawHiccups lets up to three steps fail, at Submit or at Wait: as often nobody can be blamed.
func drawHiccups(t *rapid.T) func(*enginetest.Config) {
	at := 0
	waiting, submitting := map[int]error{}, map[int]error{}
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3}).Draw(t, "hiccups") {
		at += rapid.IntRange(1, 40).Draw(t, "after steps")
		if err := fmt.Errorf("step %d fails", at); rapid.Bool().Draw(t, "at Submit") {
			submitting[at] = err
		} else {
			waiting[at] = err
		}
	}
	return func(c *enginetest.Config) {
		c.Fail = func(step int, _ *device.Batch) error { return waiting[step] }
		c.Refuse = func(step int, _ *device.Batch) error { return submitting[step] }
	}
}

// endings are tokens of a vocabulary that end a text.
func endings(vocab int) []int32 {
	if vocab < 50 {
		return []int32{int32(vocab) - 1}
	}
	return []int32{3, 50}
}

func drawRequest(t *rapid.T, i, context, vocab, window int) *pb.Request {
	limit := context - 1
	if limit < 1 {
		return nil
	}
	// Few seeds, so that prompts share prefixes.
	p := prompt(rapid.IntRange(0, 2).Draw(t, "prompt"), rapid.IntRange(1, min(limit, 90)).Draw(t, "length"))
	for i := range p {
		p[i] %= int32(vocab)
	}
	q := ask(fmt.Sprintf("r%d", i), p, rapid.IntRange(0, 30).Draw(t, "max tokens"))
	sp := q.Sampling
	if rapid.Bool().Draw(t, "sampled") {
		one := float32(1)
		sp.Temperature = &one
	}
	q.Priority = rapid.SampledFrom([]int32{0, 0, 0, -1, 2}).Draw(t, "priority")
	if rapid.IntRange(0, 4).Draw(t, "constrained") == 0 {
		// a is in every vocabulary.
		matching(rapid.SampledFrom([]string{"a{3,9}", "(a|b|cd)*", "[a-m]{0,20}aa"}).Draw(t, "expression"))(q)
	}
	if rapid.IntRange(0, 3).Draw(t, "bad words") == 0 {
		word := rapid.StringMatching(fmt.Sprintf("[a-%c]{1,4}", 'a'+min(vocab, 26)-1))
		sp.BadWords = rapid.SliceOfN(word, 1, 12).Draw(t, "words")
	}
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0:
		sp.N = int32(rapid.IntRange(2, 5).Draw(t, "n"))
	case 1:
		sp.PresencePenalty = 0.5
	case 2:
		sp.MinTokens = int32(rapid.IntRange(0, int(sp.MaxTokens)).Draw(t, "min tokens"))
		sp.StopTokenIds = []int32{1, 2, 4, 5, 6, 7, 8, 9}
		if vocab < 10 {
			sp.StopTokenIds = nil
		}
	case 3:
		sp.Stop = []string{"a", "bc", "de"}
	case 4:
		k := int32(2)
		sp.IgnoreEos = true
		sp.Logprobs = &k
	case 5:
		k := int32(1)
		sp.PromptLogprobs = &k
	case 6, 9:
		sp.IgnoreEos = true
	case 7:
		sp.LogitBias = map[int32]float32{1: 1}
		if sp.Constraint == nil {
			sp.AllowedTokenIds = rapid.SliceOfN(rapid.Int32Range(0, int32(vocab-1)), 1, 9).Draw(t, "allowed tokens")
		}
	case 8:
		// Generated elsewhere: a prefix of what it would give.
		sp.N = int32(rapid.IntRange(1, 3).Draw(t, "n"))
		m := Model{EOS: endings(vocab), Stops: letters, Spell: spelled, Vocab: vocab, Window: window, Constrain: Grammars(letterTokens{vocab, endings(vocab)}, vocab)}
		for c := range int(sp.N) {
			out, _ := undisturbed(q, c, &m, context)
			out = out[:rapid.IntRange(0, len(out)).Draw(t, "given")]
			q.Generated = append(q.Generated, &pb.TokenIds{Ids: out})
		}
		scored(rapid.Int32Range(-1, 2).Draw(t, "logprobs"), rapid.Int32Range(-1, 1).Draw(t, "prompt logprobs"))(q)
	}
	return q
}

// returned reports whether q was given back, to go on elsewhere.
func (r *rig) returned(q *pb.Request) bool {
	for c := range max(1, int(q.Sampling.N)) {
		if h := r.got[key(q.Id, c)]; h != nil && h.returned {
			return true
		}
	}
	return false
}

// wantPrefix checks a request that ended early.
func (r *rig) wantPrefix(q *pb.Request) {
	r.t.Helper()
	for c := range max(1, int(q.Sampling.N)) {
		h := r.got[key(q.Id, c)]
		if h == nil {
			r.t.Errorf("%s: nothing heard", key(q.Id, c))
			continue
		}
		tokens, _ := undisturbed(q, c, &r.model, r.context(q))
		if len(h.tokens) > len(tokens) {
			r.t.Errorf("%s: %d tokens, undisturbed %d", key(q.Id, c), len(h.tokens), len(tokens))
			continue
		}
		for i, t := range h.tokens {
			if t != tokens[i] {
				r.t.Errorf("%s: token %d is %d, undisturbed %d", key(q.Id, c), i, t, tokens[i])
				break
			}
		}
	}
}

// sees are those of tokens that the row of the last one attends to.
func (r *rig) sees(tokens []int32) []int32 {
	return tokens[enginetest.Hidden(r.model.Window, len(tokens)-1):]
}

// wantScores checks the log-probabilities that were asked for.
func (r *rig) wantScores(q *pb.Request) {
	r.t.Helper()
	sp := q.Sampling
	for c := range max(1, int(sp.N)) {
		h := r.got[key(q.Id, c)]
		if h == nil {
			continue
		}
		seen := append([]int32(nil), q.Prompt...)
		if sp.Logprobs != nil {
			if len(h.logprobs) != len(h.tokens) {
				r.t.Errorf("%s: %d log-probabilities for %d tokens", key(q.Id, c), len(h.logprobs), len(h.tokens))
				continue
			}
			for i, t := range h.tokens {
				if l := h.logprobs[i]; l.Chosen.TokenId != t || l.Chosen.Logprob != enginetest.Logprob(r.sees(seen), t) || len(l.Top) != int(*sp.Logprobs) {
					r.t.Errorf("%s: log-probabilities of token %d are %v", key(q.Id, c), i, l)
				}
				seen = append(seen, t)
			}
		}
		if sp.PromptLogprobs != nil && c == 0 && len(h.tokens) > 0 {
			if len(h.prompt) != len(q.Prompt)-1 {
				r.t.Errorf("%s: %d prompt log-probabilities for %d tokens", key(q.Id, c), len(h.prompt), len(q.Prompt))
				continue
			}
			for i, l := range h.prompt {
				if l.Chosen.TokenId != q.Prompt[i+1] || l.Chosen.Logprob != enginetest.Logprob(r.sees(q.Prompt[:i+1]), q.Prompt[i+1]) {
					r.t.Errorf("%s: log-probability of prompt token %d is %v", key(q.Id, c), i+1, l)
				}
			}
		}
	}
}
