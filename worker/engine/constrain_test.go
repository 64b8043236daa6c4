package engine

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model/grammar"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// letterTokens are the fake model's tokens as a grammar sees them.
type letterTokens struct {
	size int
	ends []int32
}

func (l letterTokens) Size() int            { return l.size }
func (l letterTokens) Bytes(t int32) []byte { return []byte(letter(t)) }
func (l letterTokens) IsSpecial(int32) bool { return false }
func (l letterTokens) EOGs() []int32        { return l.ends }

func matching(expr string) func(*pb.Request) {
	return func(q *pb.Request) {
		q.Sampling.Constraint = &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: expr}}
	}
}

// spoken is a choice's text without what ends it.
func (r *rig) spoken(k string) (text string) {
	for _, t := range r.got[k].tokens {
		if !slices.Contains(r.model.EOS, t) {
			text += letter(t)
		}
	}
	return text
}

// TestConstrained: every choice of every request matches, whatever runs beside it.
func TestConstrained(t *testing.T) {
	expr := regexp.MustCompile(`^(abc|de{1,5}f|g[h-k]*l)$`)
	for _, speculate := range []int{0, 4} {
		r := newRig(t, Settings{Blocks: 24, BlockTokens: 4, MaxSequences: 6, Speculate: speculate, PrefixCache: true},
			func(_ *enginetest.Config, m *Model) { m.EOS = []int32{100} })
		var reqs []*pb.Request
		for i := range 12 {
			q := ask(string(rune('A'+i)), prompt(i%3, 9+i), 60)
			switch i % 3 {
			case 0:
				matching(expr.String()[1 : len(expr.String())-1])(q)
				q.Sampling.N = int32(1 + i%4)
				one, seed := float32(1), uint64(i)
				q.Sampling.Temperature, q.Sampling.Seed = &one, &seed
			case 1:
				matching(`(ab){3,9}c`)(q)
			}
			reqs = append(reqs, q)
		}
		r.add(reqs...)
		r.finish()
		for i, q := range reqs {
			r.want(q)
			for c := range max(1, int(q.Sampling.N)) {
				text := r.spoken(key(q.Id, c))
				if i%3 == 0 && !expr.MatchString(text) || i%3 == 1 && (strings.Trim(text, "ab") != "c" || len(text) < 7) {
					t.Errorf("%s/%d wrote %q", q.Id, c, text)
				}
				if h := r.got[key(q.Id, c)]; i%3 != 2 && h.finish != stop {
					t.Errorf("%s/%d ended with %v", q.Id, c, h.finish)
				}
			}
		}
		// (ab){3,9} repeats itself.
		if s := r.p.stats(); speculate > 0 && s.AcceptedTokens[0] == 0 {
			t.Error("no draft of constrained text was right")
		}
	}
}

// TestConstrainedResumes: tokens generated elsewhere bring the grammar to where it was.
func TestConstrainedResumes(t *testing.T) {
	eos := func(_ *enginetest.Config, m *Model) { m.EOS = []int32{100} }
	q := ask("a", prompt(1, 10), 40, matching(`(abc){4,6}d`))
	r := newRig(t, Settings{Blocks: 24}, eos)
	r.add(q)
	r.finish()
	whole := r.tokens("a")
	for n := range len(whole) + 1 {
		r := newRig(t, Settings{Blocks: 24}, eos)
		q.Generated = []*pb.TokenIds{{Ids: whole[:n]}}
		r.add(q)
		r.finish()
		if got := slices.Concat(whole[:n], r.tokens("a")); !slices.Equal(got, whole) || r.got["a/0"].finish != stop {
			t.Errorf("resumed after %d: %v, want %v", n, got, whole)
		}
	}
}

// TestConstraintWinsOverMinTokens: where a complete text can only end before min_tokens, it ends; where
// it can go on, it does. A stop token that the constraint demands is written and does not count.
func TestConstraintWinsOverMinTokens(t *testing.T) {
	for _, speculate := range []int{0, 4} {
		r := newRig(t, Settings{Blocks: 64, Speculate: speculate}, func(_ *enginetest.Config, m *Model) { m.EOS = []int32{100} })
		atLeast := func(n int32) func(*pb.Request) { return func(q *pb.Request) { q.Sampling.MinTokens = n } }
		stops := func(q *pb.Request) { q.Sampling.StopTokenIds = []int32{1, 27, 53, 79} } // all that spell b
		fixed, open, stopped := ask("fixed", prompt(1, 9), 40, matching("abcabc"), atLeast(20)),
			ask("open", prompt(1, 9), 40, matching("abc[x-z]*"), atLeast(20)),
			ask("stopped", prompt(1, 9), 40, matching("abca*"), atLeast(9), stops)
		r.add(fixed, open, stopped)
		r.finish()
		for _, q := range []*pb.Request{fixed, open, stopped} {
			r.want(q)
		}
		if h := r.got["fixed/0"]; r.spoken("fixed/0") != "abcabc" || h.finish != stop {
			t.Errorf("wrote %q and ended with %v %s", r.spoken("fixed/0"), h.finish, h.message)
		}
		if n := len(r.spoken("open/0")); n < 20 {
			t.Errorf("ended after %d tokens of text that could go on", n)
		}
		if text := r.spoken("stopped/0"); !strings.HasPrefix(text, "abcaaaaaa") {
			t.Errorf("wrote %q", text)
		}
	}
}

func TestScenarioE7(t *testing.T) {
	// The device draws what the mask forbids: only that request fails.
	r := newRig(t, Settings{Blocks: 24}, func(c *enginetest.Config, m *Model) {
		m.EOS = []int32{100}
		c.Token = func(seen []int32, s device.Sample) int32 { return 5 }
	})
	r.add(ask("bad", prompt(1, 5), 10, matching("abc")), ask("good", prompt(2, 5), 3))
	r.finish()
	if h := r.got["bad/0"]; h.finish != failed || len(h.tokens) != 1 || !strings.Contains(h.message, "refused") {
		t.Errorf("%v after %v: %q", h.finish, h.tokens, h.message)
	}
	if h := r.got["good/0"]; h.finish != length || len(h.tokens) != 3 {
		t.Errorf("its neighbour: %v after %v", h.finish, h.tokens)
	}
	// What does not compile never gets a row.
	before := r.runner.Rows()
	r.add(ask("broken", prompt(1, 5), 10, matching("a(")))
	if h := r.got["broken/0"]; h == nil || h.finish != pb.FinishReason_FINISH_REASON_INVALID || !h.done || h.message == "" {
		t.Fatalf("a broken expression: %+v", h)
	}
	r.add(ask("next", prompt(2, 5), 3))
	r.finish()
	if n := r.runner.Rows() - before; n != 5+2 {
		t.Errorf("%d rows", n)
	}
}

// TestScenarioD7: a request whose constraint is being compiled waits without holding up others, is
// counted, can be aborted, and then goes on in its place.
func TestScenarioD7(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		compiling, release := make(chan string, 4), make(chan struct{})
		var compile func(context.Context, grammar.Spec) (*grammar.Grammar, error)
		r := run(t, Settings{Blocks: 24}, func(_ *enginetest.Config, m *Model) {
			m.EOS = []int32{100}
			compile = Grammars(letterTokens{testVocab, m.EOS}, testVocab)
			m.Constrain = func(ctx context.Context, s grammar.Spec) (*grammar.Grammar, error) {
				compiling <- s.Source
				select {
				case <-release:
					return compile(ctx, s)
				case <-ctx.Done():
					return nil, errors.New("given up")
				}
			}
		})
		// As many as may compile at once, and one more: it can begin only when one of them is gone.
		for i := range students() {
			r.ok(ask("gone"+string(rune('0'+i)), prompt(1, 5), 10, matching("abd")))
			<-compiling
		}
		r.ok(ask("slow", prompt(1, 5), 10, matching("abc")))
		r.ok(ask("quick", prompt(2, 5), 3))
		time.Sleep(time.Second)
		if e := r.end("quick"); e.Finish != length {
			t.Errorf("quick ended with %v", e.Finish)
		}
		if s := r.Stats(); s.Waiting != 1+students() || s.PendingPrefill != int64(5+5*students()) {
			t.Errorf("%d wait with %d tokens while %d compile", s.Waiting, s.PendingPrefill, students())
		}
		r.Abort("gone0", "no longer wanted")
		if source := <-compiling; source != "abc" {
			t.Errorf("%q is compiled", source)
		}
		time.Sleep(time.Second)
		if e := r.end("gone0"); e.Finish != abort {
			t.Errorf("gone ended with %v", e.Finish)
		}
		close(release)
		time.Sleep(time.Second)
		if e := r.end("slow"); e.Finish != stop {
			t.Errorf("slow ended with %v: %s", e.Finish, e.Error)
		}
		r.close()
	})
}

// TestHeavyConstraintHoldsUpNobody: what a grammar has to work out is not worked out on the goroutine
// that plans, and streams beside it take the steps that they take alone; its own stream goes on where
// it would have, whenever the studies come back.
func TestHeavyConstraintHoldsUpNobody(t *testing.T) {
	heavy := matching(`.*([aeiou].{20}|[st].{30})`)
	some := 0
	rapid.Check(t, func(t *rapid.T) {
		var grammars []*grammar.Grammar
		r := newRig(t, Settings{Blocks: 48, BlockTokens: 4, MaxSequences: 8, Speculate: rapid.SampledFrom([]int{0, 4}).Draw(t, "speculate"), PrefixCache: true},
			func(_ *enginetest.Config, m *Model) {
				m.EOS = []int32{100}
				compile := Grammars(letterTokens{testVocab, m.EOS}, testVocab)
				m.Constrain = func(ctx context.Context, s grammar.Spec) (*grammar.Grammar, error) {
					g, err := compile(ctx, s)
					grammars = append(grammars, g)
					return g, err
				}
			})
		var studies []*study
		r.p.study = func(x *study) { studies = append(studies, x) }
		worked := func() (n int64) {
			for _, g := range grammars {
				n += g.Worked()
			}
			return n
		}
		drawn := func(q *pb.Request) {
			one, seed := float32(1), rapid.Uint64().Draw(t, "seed")
			q.Sampling.Temperature, q.Sampling.Seed = &one, &seed
			q.Sampling.N = rapid.Int32Range(1, 3).Draw(t, "n")
		}
		slow := ask("slow", prompt(1, rapid.IntRange(8, 12).Draw(t, "prompt")), 50, heavy, drawn)
		var quick []*pb.Request
		for i := range 3 {
			quick = append(quick, ask(string(rune('a'+i)), prompt(2+i, 5), 20))
		}
		r.add(append(quick, slow)...)
		before := worked() // for compiling
		steps := 0
		for _, q := range quick {
			for ; r.got[key(q.Id, 0)] == nil || !r.got[key(q.Id, 0)].done; steps++ {
				if steps > 25 {
					t.Fatalf("%s has no end after %d steps", q.Id, steps)
				}
				r.step()
			}
		}
		if did := worked() - before; did != 0 {
			t.Fatalf("%d operations on the goroutine that plans", did)
		}
		some += len(studies)
		for n := 0; !r.p.idle() || len(studies) > 0; n++ {
			if n > 2000 {
				t.Fatal("no end")
			}
			before = worked()
			r.step()
			if did := worked() - before; did != 0 {
				t.Fatalf("%d operations on the goroutine that plans", did)
			}
			for len(studies) > 0 && rapid.Bool().Draw(t, "done") {
				i := rapid.IntRange(0, len(studies)-1).Draw(t, "which")
				x := studies[i]
				studies = slices.Delete(studies, i, i+1)
				x.do()
				r.p.learn(x)
				r.hear()
			}
		}
		for _, q := range append(quick, slow) {
			r.want(q)
		}
	})
	if some == 0 {
		t.Error("nothing ever had to be worked out")
	}
}

// TestConstraintOverItsLimitIsTheClients: a text that its constraint can't follow any further ends with
// a reason that says that asking again is of no use, and what was written stays.
func TestConstraintOverItsLimitIsTheClients(t *testing.T) {
	r := newRig(t, Settings{Blocks: 512, BlockTokens: 16}, func(_ *enginetest.Config, m *Model) {
		m.EOS = []int32{100}
		m.Constrain = func(ctx context.Context, s grammar.Spec) (*grammar.Grammar, error) {
			v, err := grammar.NewVocabulary(letterTokens{testVocab, m.EOS}, testVocab)
			if err != nil {
				return nil, err
			}
			return grammar.Compile(ctx, s, v, grammar.Limits{Ways: 100})
		}
	})
	r.add(ask("wide", prompt(1, 5), 400, matching(`[ab]*a[ab]{1000}`)), ask("good", prompt(2, 5), 3))
	r.finish()
	if h := r.got["wide/0"]; h.finish != pb.FinishReason_FINISH_REASON_INVALID || len(h.tokens) < 20 || !strings.Contains(h.message, "100 ways") {
		t.Errorf("ended with %v after %d tokens: %q", h.finish, len(h.tokens), h.message)
	}
	if h := r.got["good/0"]; h.finish != length {
		t.Errorf("its neighbour ended with %v", h.finish)
	}
}

// TestConstrainedReal: the embedded model, which never learnt JSON, writes what it must.
func TestConstrainedReal(t *testing.T) {
	m := loadTiny(t)
	schema := `{"type":"object","properties":{"name":{"type":"string","maxLength":8},"age":{"type":"integer","minimum":0,"maximum":99}},"required":["name","age"],"additionalProperties":false}`
	constraints := map[string]*pb.Constraint{
		"object": {Kind: &pb.Constraint_JsonObject{JsonObject: true}},
		"schema": {Kind: &pb.Constraint_JsonSchema{JsonSchema: schema}},
		"regex":  {Kind: &pb.Constraint_Regex{Regex: `[a-z]{2,6} [0-9]{3}`}},
	}
	for _, s := range []Settings{{Blocks: 96}, {Blocks: 24, PrefixCache: true, Speculate: 4}} {
		r := m.rig(t, s)
		for name, c := range constraints {
			temperature := float32(0.8)
			r.add(m.ask(name, conversation("Hello!"), 120, func(q *pb.Request) {
				q.Sampling.Constraint, q.Sampling.N, q.Sampling.Temperature = c, 3, &temperature
			}))
		}
		r.finish()
		for k, h := range r.got {
			text := m.Tokenizer.Decode(h.tokens, true)
			var person struct {
				Name *string
				Age  *int
			}
			switch {
			case h.finish == length && strings.HasPrefix(k, "object"):
				continue // nothing bounds it
			case h.finish != stop:
				t.Errorf("%s ended with %v (%s): %q", k, h.finish, h.message, text)
			case strings.HasPrefix(k, "object"):
				if err := json.Unmarshal([]byte(text), &map[string]any{}); err != nil {
					t.Errorf("%s: %v: %q", k, err, text)
				}
			case strings.HasPrefix(k, "schema"):
				if err := json.Unmarshal([]byte(text), &person); err != nil || person.Name == nil || person.Age == nil || *person.Age > 99 {
					t.Errorf("%s: %v: %q", k, err, text)
				}
			default:
				if !regexp.MustCompile(`^[a-z]{2,6} [0-9]{3}$`).MatchString(text) {
					t.Errorf("%s: %q", k, text)
				}
			}
		}
	}
}
