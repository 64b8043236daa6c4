package gateway

import (
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/quire-serve/quire/gateway/gatewaytest"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func testLive(id string, maxTokens, n int32) *live {
	g := &Gateway{}
	g.workers.byID = map[string]*attachment{}
	m := &served{Model: Model{ID: "m"}, meters: newMetrics(g).of("m"), log: slog.New(slog.DiscardHandler)}
	return newLive(&pb.Request{Id: id, Sampling: &pb.SamplingParams{MaxTokens: maxTokens, N: n}}, m, false, time.Unix(0, 0))
}

// TestApplyPlacesByPosition delivers a choice's tokens in any cuts, with repeats and with output of
// superseded dispatches in between: what is kept is always the tokens, once each, in order.
func TestApplyPlacesByPosition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "tokens")
		l := testLive("r", int32(n), 1)
		have, index := 0, uint64(1)
		for have < n {
			if rapid.IntRange(0, 3).Draw(t, "stale") == 0 && index > 1 {
				l.apply("old", &pb.TokenEvent{Index: index - 1, First: int32(have), TokenIds: []int32{-1}}, time.Unix(1, 0))
			}
			if rapid.IntRange(0, 5).Draw(t, "again") == 0 {
				index++ // dispatched again
			}
			first := rapid.IntRange(0, have).Draw(t, "first")
			last := rapid.IntRange(first, min(n, have+4)).Draw(t, "last")
			ev := &pb.TokenEvent{Index: index, First: int32(first)}
			for i := first; i < last; i++ {
				ev.TokenIds = append(ev.TokenIds, int32(i))
				ev.Logprobs = append(ev.Logprobs, &pb.Logprobs{Chosen: &pb.TokenLogprob{TokenId: int32(i)}})
			}
			l.apply("w", ev, time.Unix(1, 0))
			have = max(have, last)
			got := l.choices[0]
			if len(got.tokens) != have || len(got.logprobs) != have {
				t.Fatalf("%d tokens and %d logprobs, want %d", len(got.tokens), len(got.logprobs), have)
			}
			for i, id := range got.tokens {
				if id != int32(i) || got.logprobs[i].Chosen.TokenId != id {
					t.Fatalf("token %d is %d", i, id)
				}
			}
		}
		l.apply("w", &pb.TokenEvent{Index: index, First: int32(n), FinishReason: pb.FinishReason_FINISH_REASON_LENGTH, RequestDone: true}, time.Unix(1, 0))
		if !l.done || l.failure != nil {
			t.Fatalf("done %t, failure %v", l.done, l.failure)
		}
		if news, _ := l.apply("w", &pb.TokenEvent{Index: index, First: int32(n), TokenIds: []int32{9}}, time.Unix(1, 0)); news {
			t.Fatal("an event after the end is news")
		}
	})
}

// TestExpiryGivesThePlaceBack: what waits for its client holds a place, until it does not wait any more.
func TestExpiryGivesThePlaceBack(t *testing.T) {
	g := &Gateway{}
	l := testLive("r", 10, 1)
	l.done, l.lingers = true, time.Unix(2, 0)
	g.lives.byID = map[string]*live{"r": l}
	g.inUse.Store(1)
	g.expire(t.Context(), l, time.Unix(1, 0))
	if g.inUse.Load() != 1 || g.lives.get("r") == nil {
		t.Error("it was ended before its time")
	}
	for range 2 {
		g.expire(t.Context(), l, time.Unix(3, 0))
		if g.inUse.Load() != 0 || g.lives.get("r") != nil {
			t.Errorf("%d places are held by what is gone", g.inUse.Load())
		}
	}
}

// TestRecalledOutputIsNotShown: what is handed back to the leader is all that the client is ever shown of that
// dispatch.
func TestRecalledOutputIsNotShown(t *testing.T) {
	l := testLive("r", 10, 1)
	l.apply("w", &pb.TokenEvent{Term: 2, Index: 5, TokenIds: []int32{1}}, time.Unix(1, 0))
	given := l.recall(dispatch{2, 5})
	l.apply("w", &pb.TokenEvent{Term: 2, Index: 5, First: 1, TokenIds: []int32{2}}, time.Unix(1, 0))
	if len(given) != 1 || !slices.Equal(given[0].TokenIds, []int32{1}) || !slices.Equal(l.choices[0].tokens, []int32{1}) {
		t.Errorf("given back %v, shown %v", given, l.choices[0].tokens)
	}
	l.apply("next", &pb.TokenEvent{Term: 2, Index: 6, First: 1, TokenIds: []int32{3}}, time.Unix(1, 0))
	if !slices.Equal(l.choices[0].tokens, []int32{1, 3}) {
		t.Errorf("shown %v", l.choices[0].tokens)
	}
}

// TestOldTermsAreFenced: a leader that is gone may have counted further than the next one begins.
func TestOldTermsAreFenced(t *testing.T) {
	l := testLive("r", 10, 1)
	l.apply("w", &pb.TokenEvent{Term: 2, Index: 5, TokenIds: []int32{1}}, time.Unix(1, 0))
	if news, gap := l.apply("old", &pb.TokenEvent{Term: 1, Index: 9, First: 1, TokenIds: []int32{9}}, time.Unix(1, 0)); news || gap {
		t.Error("output of an older term is taken")
	}
	l.apply("w", &pb.TokenEvent{Term: 3, Index: 1, First: 1, TokenIds: []int32{2}}, time.Unix(1, 0))
	if got := l.choices[0].tokens; !slices.Equal(got, []int32{1, 2}) {
		t.Errorf("tokens are %v", got)
	}
}

// TestApplyRefuses ends a request whose worker breaks the contract.
func TestApplyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		ev   *pb.TokenEvent
		want string
	}{
		"an unknown choice": {&pb.TokenEvent{Choice: 2}, "worker w sent choice 2 of a request with 2"},
		"too many tokens":   {&pb.TokenEvent{TokenIds: []int32{1, 2, 3, 4}}, "worker w sent more than max_tokens 3"},
		"an error":          {&pb.TokenEvent{FinishReason: pb.FinishReason_FINISH_REASON_ERROR, Error: "boom"}, "generation failed: boom"},
		"an abort":          {&pb.TokenEvent{FinishReason: pb.FinishReason_FINISH_REASON_ABORT}, "the request was cancelled"},
	} {
		l := testLive("r", 3, 2)
		if news, _ := l.apply("w", c.ev, time.Unix(1, 0)); !news || !l.done || l.failure == nil || l.failure.message != c.want {
			t.Errorf("%s: done %t, failure %v", name, l.done, l.failure)
		}
	}
}

// TestGapsAreAskedAfter drops what does not follow, and says so.
func TestGapsAreAskedAfter(t *testing.T) {
	for name, ev := range map[string]*pb.TokenEvent{
		"tokens":               {First: 1, TokenIds: []int32{5}},
		"an end without ends":  {FinishReason: pb.FinishReason_FINISH_REASON_STOP, RequestDone: true},
		"for want of a client": {FinishReason: pb.FinishReason_FINISH_REASON_ABORT, Error: reasonGone, RequestDone: true},
	} {
		l := testLive("r", 3, 2)
		close(l.admitted)
		if _, gap := l.apply("w", ev, time.Unix(1, 0)); !gap || l.done || len(l.choices[0].tokens) != 0 {
			t.Errorf("%s: gap %t, done %t, %v", name, gap, l.done, l.failure)
		}
		if ask, _ := l.inspect(time.Unix(1, 0), func(string) bool { return true }); !ask {
			t.Errorf("%s: the leader is not asked", name)
		}
	}
}

// TestResumePoint says what the gateway has, to the worker that runs the request alone.
func TestResumePoint(t *testing.T) {
	l := testLive("r", 9, 2)
	if p := l.resumePoint("other"); p == nil || !slices.Equal(p.Received, []int32{0, 0}) {
		t.Errorf("before it is placed: %v", p)
	}
	l.apply("w", &pb.TokenEvent{Choice: 1, TokenIds: []int32{1, 2}}, time.Unix(1, 0))
	if p := l.resumePoint("w"); p == nil || p.RequestId != "r" || !slices.Equal(p.Received, []int32{0, 2}) {
		t.Errorf("got %v", p)
	}
	if p := l.resumePoint("other"); p != nil {
		t.Errorf("another worker is asked for %v", p)
	}
	l.fail(cancelled(""))
	if p := l.resumePoint("w"); p != nil {
		t.Errorf("ended, and resumed at %v", p)
	}
}

// TestRouteWakesOncePerStep applies a step's events before the reader is woken.
func TestRouteWakesOncePerStep(t *testing.T) {
	l := testLive("r", 9, 3)
	who := &reader{wake: make(chan struct{}, 1)}
	l.readers = []*reader{who}
	r := router{table: &table{byID: map[string]*live{"r": l}}, worker: "w"}
	var events []*pb.TokenEvent
	for i := range int32(3) {
		events = append(events, &pb.TokenEvent{RequestId: "r", Choice: i, TokenIds: []int32{7}}, &pb.TokenEvent{RequestId: "unknown"})
	}
	r.route(events, time.Unix(1, 0))
	<-who.wake
	if len(who.wake) != 0 {
		t.Error("woken twice")
	}
	for i, c := range l.choices {
		if len(c.tokens) != 1 {
			t.Errorf("choice %d has %d tokens", i, len(c.tokens))
		}
	}
}

// TestAssembler compares the text of tokens pushed in any cuts with the text decoded whole and cut at
// the first stop string.
func TestAssembler(t *testing.T) {
	vocab := gatewaytest.Tokenizer()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[abé€]{0,30}`).Draw(t, "text")
		stops := rapid.SliceOfN(rapid.StringMatching(`[abé]{1,3}`), 0, 3).Draw(t, "stops")
		minTokens := rapid.IntRange(0, 6).Draw(t, "min")
		ids := gatewaytest.Text(text)
		free := min(minTokens, len(ids))
		keep := rapid.Bool().Draw(t, "keep")
		a := newAssembler(vocab, &pb.SamplingParams{Stop: stops, MinTokens: int32(minTokens), IncludeStop: keep})
		// Where the forced part ends inside a character, the whole character counts as after it.
		for free > 0 && free < len(ids) && text[free]&0xc0 == 0x80 {
			free--
		}
		// A stop string counts if it ends behind the forced part, wherever it begins.
		want := text
		for end := free + 1; end <= len(text) && want == text; end++ {
			if n := longest(text[:end], stops); n > 0 {
				want = text[:end-n]
				if keep {
					want = text[:end]
					break
				}
			}
		}
		var got strings.Builder
		for len(ids) > 0 {
			n := rapid.IntRange(1, len(ids)).Draw(t, "cut")
			finish := pb.FinishReason_FINISH_REASON_UNSPECIFIED
			if n == len(ids) {
				finish = pb.FinishReason_FINISH_REASON_LENGTH
			}
			s, _ := a.push(ids[:n], finish)
			got.WriteString(s)
			ids = ids[n:]
		}
		if got.String() != want {
			t.Fatalf("got %q, want %q", got.String(), want)
		}
	})
}

// TestTextDependsOnTokensAlone pushes the same tokens, whole characters or not, in two different cuts:
// after the same count of tokens the text so far is the same, and so is it after the end.
func TestTextDependsOnTokensAlone(t *testing.T) {
	vocab := gatewaytest.Tokenizer()
	rapid.Check(t, func(t *rapid.T) {
		some := rapid.SampledFrom([]int32{'a', 'b', 0xe2, 0x82, 0xac, 0xc3, 0xa9, 0xf0, 0x9f, 0x80, 0xff, gatewaytest.TurnStart})
		ids := rapid.SliceOfN(some, 1, 20).Draw(t, "ids")
		p := &pb.SamplingParams{
			Stop:      rapid.SliceOfN(rapid.StringMatching(`[ab€é\x{fffd}]{1,3}|b?<\|im_start\|>a?`), 0, 3).Draw(t, "stops"),
			MinTokens: rapid.Int32Range(0, 6).Draw(t, "min"),
		}
		finish := pb.FinishReason_FINISH_REASON_LENGTH
		switch rapid.IntRange(0, 2).Draw(t, "end") {
		case 1:
			ids, finish = append(ids, gatewaytest.TurnEnd), pb.FinishReason_FINISH_REASON_STOP
		case 2:
			// A stop id with a text of its own: like the end of a turn, none of the answer.
			p.StopTokenIds = []int32{'z'}
			ids, finish = append(ids, 'z'), pb.FinishReason_FINISH_REASON_STOP
		}
		p.MinTokens = min(p.MinTokens, int32(len(ids)-1))
		p.ShowSpecialTokens, p.IncludeStop = rapid.Bool().Draw(t, "show special"), rapid.Bool().Draw(t, "include stop")
		a, one := newAssembler(vocab, p), newAssembler(vocab, p)
		var got, want string
		for at := 0; at < len(ids); {
			n := rapid.IntRange(1, len(ids)-at).Draw(t, "cut")
			s, _ := a.push(ids[at:at+n], pb.FinishReason_FINISH_REASON_UNSPECIFIED)
			got += s
			for _, id := range ids[at : at+n] {
				s, _ := one.push([]int32{id}, pb.FinishReason_FINISH_REASON_UNSPECIFIED)
				want += s
			}
			if at += n; got != want {
				t.Fatalf("after %d tokens %q, one by one %q", at, got, want)
			}
		}
		n := rapid.IntRange(0, len(ids)).Draw(t, "last")
		b := newAssembler(vocab, p)
		first, _ := b.push(ids[:n], pb.FinishReason_FINISH_REASON_UNSPECIFIED)
		rest, _ := b.push(ids[n:], finish)
		if end, _ := a.push(nil, finish); first+rest != got+end {
			t.Fatalf("told of the end with the tokens %q, after them %q", first+rest, got+end)
		}
	})
}

// TestStopTokensAreNoPartOfTheAnswer: neither the end of a turn, nor a stop id, nor the token that a
// stop string spells, whether special tokens are shown or not; unless the request wants what ended it.
func TestStopTokensAreNoPartOfTheAnswer(t *testing.T) {
	for _, show := range []bool{false, true} {
		for name, p := range map[string]*pb.SamplingParams{
			"end of turn": {},
			"stop id":     {IgnoreEos: true, StopTokenIds: []int32{gatewaytest.TurnEnd}},
			"spelled":     {IgnoreEos: true, Stop: []string{"<|im_end|>"}},
		} {
			p.ShowSpecialTokens = show
			a := newAssembler(gatewaytest.Tokenizer(), p)
			if text, kept := a.push([]int32{'a', gatewaytest.TurnEnd}, pb.FinishReason_FINISH_REASON_STOP); text != "a" || kept != 1 {
				t.Errorf("%s, special tokens shown %t: %q, %d tokens kept", name, show, text, kept)
			}
			p.IncludeStop = true
			want := "a"
			if show {
				want += "<|im_end|>"
			}
			a = newAssembler(gatewaytest.Tokenizer(), p)
			if text, kept := a.push([]int32{'a', gatewaytest.TurnEnd, 'b'}, pb.FinishReason_FINISH_REASON_STOP); text != want || kept != 2 {
				t.Errorf("%s included, special tokens shown %t: %q, %d tokens kept", name, show, text, kept)
			}
		}
	}
}

// longest is the length of the longest stop string that text ends with.
func longest(text string, stops []string) int {
	n := 0
	for _, s := range stops {
		if strings.HasSuffix(text, s) {
			n = max(n, len(s))
		}
	}
	return n
}

// FuzzAppendString compares our JSON strings with encoding/json's reading of them.
func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "plain", "\"\\\n\r\t\x00\x1f\x7f", "é€😀", "a\xffb", "\u2028"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var got string
		if err := json.Unmarshal(appendString(nil, s), &got); err != nil {
			t.Fatal(err)
		}
		if want := strings.ToValidUTF8(s, "\x00"); strings.Count(got, "\ufffd") == strings.Count(s, "\ufffd") && got != want {
			t.Errorf("%q became %q", s, got)
		}
		if want, _ := json.Marshal(s); json.Unmarshal(want, &s) == nil && got != s {
			t.Errorf("got %q, encoding/json has %q", got, s)
		}
	})
}
