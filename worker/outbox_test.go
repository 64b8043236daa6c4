package worker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine"
)

// box is an outbox whose evictions are written down.
func box(s Settings) (o *outbox, evicted *[]string) {
	evicted = new([]string)
	return newOutbox(s.withDefaults(), func(id string) { *evicted = append(*evicted, id) }), evicted
}

func tokens(id string, first int32, ids ...int32) engine.Event {
	return engine.Event{RequestID: id, GatewayID: "g1", First: first, Tokens: ids, QueueUS: -1, PrefillUS: -1}
}

func last(e engine.Event) engine.Event {
	e.Finish, e.Done = pb.FinishReason_FINISH_REASON_LENGTH, true
	return e
}

// told takes everything that a leader would be told at once.
func told(o *outbox, now time.Time) (ends []*pb.FinishedRequest, news []*pb.RequestProgress) {
	for {
		f, p := o.finished(now)
		ends, news = append(ends, f.GetRequests()...), append(news, p.GetRequests()...)
		if f == nil && p == nil {
			break
		}
	}
	for more := true; more; {
		var p *pb.Progress
		p, more = o.checkpoint()
		news = append(news, p.GetRequests()...)
	}
	return ends, news
}

// TestOutboxIsBounded: ended outputs go when they are old, too many or too large together, the oldest
// first; what runs is ended if it alone is too much, the largest first.
func TestOutboxIsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	has := func(o *outbox) (ids []string) {
		for id := range o.outputs {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		return ids
	}
	o, evicted := box(Settings{OutboxRequests: 3, KeepEnded: time.Minute})
	for i := range 5 {
		id := fmt.Sprint(i)
		o.open(ask(id, 5), 1, 1)
		o.add([]engine.Event{last(tokens(id, 0, 1))}, now)
		if len(o.outputs) != i+1 {
			t.Fatalf("%v are kept: an end that no leader was told of is gone", has(o))
		}
	}
	told(o, now)
	o.open(ask("5", 5), 1, 1)
	o.add([]engine.Event{tokens("5", 0, 1)}, now)
	if got := has(o); !slices.Equal(got, []string{"3", "4", "5"}) {
		t.Errorf("kept %v, want what runs and the newest 2", got)
	}
	o.add([]engine.Event{last(tokens("5", 1, 1))}, now)
	told(o, now)
	o.open(ask("later", 5), 1, 1)
	o.add([]engine.Event{tokens("later", 0, 1)}, now.Add(time.Minute))
	if got := has(o); !slices.Equal(got, []string{"later"}) {
		t.Errorf("kept %v after a minute, want what runs", got)
	}
	if len(*evicted) != 0 {
		t.Errorf("evicted %v", *evicted)
	}

	o, evicted = box(Settings{OutboxBytes: 1 << 20})
	o.open(ask("ended", 5), 1, 1)
	o.add([]engine.Event{last(tokens("ended", 0, make([]int32, 1000)...))}, now)
	told(o, now)
	o.open(ask("small", 5), 1, 1)
	o.open(ask("large", 5), 1, 1)
	o.add([]engine.Event{tokens("small", 0, 1), tokens("large", 0, make([]int32, 250_000)...)}, now)
	if got := has(o); len(got) != 3 || len(*evicted) != 0 {
		t.Errorf("kept %v and evicted %v within the bound", got, *evicted)
	}
	o.add([]engine.Event{tokens("large", 250_000, make([]int32, 20_000)...)}, now)
	if got := has(o); !slices.Equal(got, []string{"large", "small"}) || !slices.Equal(*evicted, []string{"large"}) {
		t.Errorf("kept %v and evicted %v, want the ended one gone and the largest evicted", got, *evicted)
	}
	if _, n, bytes := o.counts(); n != 2 || bytes != 2*384+4*270_001 {
		t.Errorf("%d outputs of %d bytes", n, bytes)
	}
}

// TestSlowGateway: what several steps brought comes as one event, in messages of bounded size.
func TestSlowGateway(t *testing.T) {
	o, _ := box(Settings{})
	s := o.attach(&pb.AttachHello{GatewayId: "g1"})
	other := o.attach(&pb.AttachHello{GatewayId: "g2"})
	now := time.Unix(1000, 0)
	for i := range 3 {
		o.open(ask(fmt.Sprint(i), 5), 7, 8)
	}
	for step := range int32(4) {
		var events []engine.Event
		for i := range 3 {
			events = append(events, tokens(fmt.Sprint(i), step, step*10))
		}
		o.add(events, now)
	}
	var got []*pb.TokenEvent
	messages := 0
	for more := true; more; messages++ {
		got, more = o.collect(got, s, 168) // two of the events
	}
	if messages != 2 || len(got) != 3 {
		t.Errorf("%d events in %d messages, want 3 in 2", len(got), messages)
	}
	for _, e := range got {
		if e.First != 0 || !slices.Equal(e.TokenIds, []int32{0, 10, 20, 30}) || e.RequestDone || e.Term != 7 || e.Index != 8 {
			t.Errorf("event is %v", e)
		}
	}
	if rest, more := o.collect(nil, s, 100); len(rest) != 0 || more {
		t.Errorf("%v again", rest)
	}
	if rest, _ := o.collect(nil, other, 100); len(rest) != 0 {
		t.Errorf("another gateway got %v", rest)
	}
}

// TestLongOutputsTakeSeveralMessages: all that a request with log-probabilities has, for a gateway that
// has nothing of it, is more than a message takes.
func TestLongOutputsTakeSeveralMessages(t *testing.T) {
	o, _ := box(Settings{})
	now := time.Unix(1000, 0)
	q := ask("a", 5)
	q.Sampling.N = 2
	o.open(q, 1, 1)
	for c := range int32(2) {
		e := tokens("a", 0)
		e.Choice = c
		for i := range int32(50) {
			e.Tokens = append(e.Tokens, i)
			e.Logprobs = append(e.Logprobs, &pb.Logprobs{Chosen: &pb.TokenLogprob{TokenId: i}})
		}
		e.Finish, e.Done = pb.FinishReason_FINISH_REASON_STOP, c == 1
		o.add([]engine.Event{e}, now)
	}
	s := o.attach(&pb.AttachHello{GatewayId: "g1"})
	const limit = 2000
	got, done, messages := [2]int32{}, false, 0
	for more := true; more; messages++ {
		var events []*pb.TokenEvent
		events, more = o.collect(nil, s, limit)
		size := int64(0)
		for _, e := range events {
			if done || e.First != got[e.Choice] || len(e.Logprobs) != len(e.TokenIds) {
				t.Fatalf("after %v, done %t: %v", got, done, e)
			}
			for i, id := range e.TokenIds {
				if id != e.First+int32(i) || e.Logprobs[i].Chosen.TokenId != id {
					t.Fatalf("after %v: %v", got, e)
				}
				size += logprobsBytes(e.Logprobs[i])
			}
			got[e.Choice] += int32(len(e.TokenIds))
			if ends := e.FinishReason != 0; ends != (got[e.Choice] == 50) {
				t.Errorf("%d tokens with finish %v", got[e.Choice], e.FinishReason)
			}
			done = e.RequestDone
		}
		if size > limit+logprobsBytes(events[0].Logprobs[0]) {
			t.Errorf("a message of %d bytes", size)
		}
	}
	if got != [2]int32{50, 50} || !done || messages < 8 {
		t.Errorf("%v tokens in %d messages, done %t", got, messages, done)
	}
}

// TestEventsCarryEverything: log-probabilities, prompt log-probabilities and waits come once, with
// the tokens that they belong to, and again to a gateway that starts over.
func TestEventsCarryEverything(t *testing.T) {
	o, _ := box(Settings{})
	now := time.Unix(1000, 0)
	q := ask("a", 5)
	q.Sampling.N = 2
	o.open(q, 1, 1)
	s := o.attach(&pb.AttachHello{GatewayId: "g1"})
	lp := func(t int32) *pb.Logprobs { return &pb.Logprobs{Chosen: &pb.TokenLogprob{TokenId: t, Logprob: -1}} }
	first := tokens("a", 0, 5)
	first.Opening, first.QueueUS, first.PrefillUS = true, 10, 20
	first.Logprobs = []*pb.Logprobs{lp(5)}
	first.PromptLogprobs = []*pb.Logprobs{lp(1), lp(2)}
	o.add([]engine.Event{first}, now)
	got, _ := o.collect(nil, s, 1<<20)
	if len(got) != 1 || got[0].GetQueueUs() != 10 || got[0].GetPrefillUs() != 20 || len(got[0].PromptLogprobs) != 2 || len(got[0].Logprobs) != 1 {
		t.Fatalf("got %v", got)
	}
	second := tokens("a", 1, 6)
	second.Logprobs = []*pb.Logprobs{lp(6)}
	second.Finish, second.StopReason = pb.FinishReason_FINISH_REASON_STOP, "x"
	sibling := last(tokens("a", 0, 9))
	sibling.Choice = 1
	sibling.Logprobs = []*pb.Logprobs{lp(9)}
	sibling.Usage = engine.Usage{PromptTokens: 4, CompletionTokens: 3}
	o.add([]engine.Event{second, sibling}, now)
	ended, _ := told(o, now)
	if len(ended) != 1 || ended[0].FinishReason != pb.FinishReason_FINISH_REASON_STOP || ended[0].Usage.CompletionTokens != 3 {
		t.Errorf("reported %v", ended)
	}
	got, _ = o.collect(nil, s, 1<<20)
	if len(got) != 2 || got[0].QueueUs != nil || got[0].PromptLogprobs != nil || got[0].StopReason != "x" || got[0].RequestDone ||
		got[0].Logprobs[0].Chosen.TokenId != 6 || got[0].First != 1 || !got[1].RequestDone || got[1].Choice != 1 {
		t.Errorf("got %v", got)
	}
	s = o.attach(&pb.AttachHello{GatewayId: "g1", Resume: []*pb.ResumePoint{{RequestId: "a", Received: []int32{2, 0}}}})
	got, _ = o.collect(nil, s, 1<<20)
	if len(got) != 2 || len(got[0].TokenIds) != 0 || got[0].FinishReason != pb.FinishReason_FINISH_REASON_STOP || !slices.Equal(got[1].TokenIds, []int32{9}) || !got[1].RequestDone {
		t.Errorf("after resuming got %v", got)
	}
}

// TestEndBeforeTheHelloIsDelivered: a request that ended after the gateway wrote its hello, which
// therefore does not name it, and before the worker read the hello. No session took its end, so this
// one must.
func TestEndBeforeTheHelloIsDelivered(t *testing.T) {
	o := newOutbox(Settings{}.withDefaults(), func(string) {})
	now := time.Unix(1, 0)
	o.open(&pb.Request{Id: "r", GatewayId: "g"}, 1, 1)
	o.add([]engine.Event{{RequestID: "r", Tokens: []int32{7}, Finish: pb.FinishReason_FINISH_REASON_STOP, Done: true}}, now)

	s := o.attach(&pb.AttachHello{GatewayId: "g"})
	events, _ := o.collect(nil, s, 1<<20)
	if len(events) != 1 || !events[0].RequestDone || len(events[0].TokenIds) != 1 {
		t.Fatalf("events %v; want the token and the end", events)
	}
	// The next session's gateway has been told, and does not ask.
	s = o.attach(&pb.AttachHello{GatewayId: "g"})
	if events, _ := o.collect(nil, s, 1<<20); len(events) != 0 {
		t.Errorf("told again: %v", events)
	}
}

// TestOnlyTheOwnerResumes: a gateway gets what streams to it, and nothing by asking for another's.
func TestOnlyTheOwnerResumes(t *testing.T) {
	o, _ := box(Settings{})
	o.open(ask("a", 5), 1, 1)
	o.add([]engine.Event{tokens("a", 0, 1, 2)}, time.Unix(1000, 0))
	other, owner := o.attach(&pb.AttachHello{GatewayId: "other"}), o.attach(&pb.AttachHello{GatewayId: ask("a", 5).GatewayId})
	if got, _ := o.collect(nil, owner, 1<<20); len(got) != 1 || len(got[0].TokenIds) != 2 {
		t.Errorf("its gateway got %v", got)
	}
	o.resume(other, &pb.ResumePoint{RequestId: "a"})
	for _, s := range []*session{other, owner} {
		if got, _ := o.collect(nil, s, 1<<20); len(got) != 0 {
			t.Errorf("after another gateway had asked for it, %s got %v", s.gateway, got)
		}
	}
}

// TestReturnedRequestsHaveNoEnd: the gateway of a request that was handed back gets its tokens and no finish:
// the request goes on elsewhere.
func TestReturnedRequestsHaveNoEnd(t *testing.T) {
	o, _ := box(Settings{})
	o.open(ask("a", 5), 1, 1)
	s := o.attach(&pb.AttachHello{GatewayId: ask("a", 5).GatewayId})
	o.add([]engine.Event{tokens("a", 0, 1)}, time.Unix(1000, 0))
	o.giveBack("a")
	o.add([]engine.Event{{RequestID: "a", First: 1, Finish: pb.FinishReason_FINISH_REASON_ABORT, Error: "drained", Done: true}}, time.Unix(1000, 0))
	got, _ := o.collect(nil, s, 1<<20)
	if len(got) != 1 || len(got[0].TokenIds) != 1 || got[0].FinishReason != 0 || got[0].RequestDone {
		t.Errorf("its gateway got %v", got)
	}
}
