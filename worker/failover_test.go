package worker

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quire-serve/quire/kvcache"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// account is what a leader makes of the news of one request: its tokens from first on, each said once.
type account struct {
	first  int32
	tokens []int32
	finish pb.FinishReason
	why    string
}

// learn adds news of choices to accounts, and fails the test if a token is missing or said twice.
func learn(t *testing.T, accounts map[int32]*account, news []*pb.ChoiceProgress) {
	t.Helper()
	for _, c := range news {
		a := accounts[c.Choice]
		if a == nil {
			a = &account{first: c.First}
			accounts[c.Choice] = a
		}
		if want := a.first + int32(len(a.tokens)); c.First != want {
			t.Fatalf("choice %d: news from %d on, want %d", c.Choice, c.First, want)
		}
		if a.finish != 0 {
			t.Fatalf("choice %d: news after its end: %v", c.Choice, c)
		}
		a.tokens = append(a.tokens, c.TokenIds...)
		a.finish, a.why = c.FinishReason, c.StopReason
	}
}

// redirect sends a request's output to another gateway.
func (s *leaderSession) redirect(t *testing.T, term uint64, id, gateway string) {
	t.Helper()
	m := &pb.WorkResponse{Message: &pb.WorkResponse_Redirect{Redirect: &pb.Redirect{Term: term, RequestId: id, GatewayId: gateway}}}
	if err := s.stream.Send(m); err != nil {
		t.Fatal(err)
	}
}

// TestProgressIsTold: the leader hears every token of every choice once, those of running requests
// before they end, and the end with the rest.
func TestProgressIsTold(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	q := ask("a", 40)
	q.Sampling.N = 2
	s.dispatch(t, 1, 9, q)
	w.gate.let(10)
	accounts := map[int32]*account{}
	for len(accounts) < 2 || len(accounts[0].tokens) < 5 || len(accounts[1].tokens) < 5 {
		p := next(t, s.progress, "progress")
		if p.RequestId != "a" || p.Term != 1 || p.Index != 9 {
			t.Fatalf("progress is %v", p)
		}
		learn(t, accounts, p.Choices)
	}
	if accounts[0].finish != 0 {
		t.Errorf("choice 0 ended after %d steps", 10)
	}
	w.gate.let(-1)
	f := next(t, s.finished, "report")
	for len(s.progress) > 0 { // all of it came before
		learn(t, accounts, (<-s.progress).Choices)
	}
	learn(t, accounts, f.Choices)
	for c, a := range accounts {
		if a.first != 0 || a.finish != pb.FinishReason_FINISH_REASON_LENGTH || !slices.Equal(a.tokens, outputOf(q.Prompt, 40)) {
			t.Errorf("choice %d is %+v, want %v", c, a, outputOf(q.Prompt, 40))
		}
	}
}

// TestGoesOnAfterGenerated: a request that comes with tokens generated elsewhere streams and reports
// what follows them.
func TestGoesOnAfterGenerated(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	w.gate.let(-1)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	q := ask("a", 30)
	want := outputOf(q.Prompt, 30)
	q.Generated = []*pb.TokenIds{{Ids: want[:12]}}
	s.dispatch(t, 1, 1, q)
	tokens, first, last := g.collect(t, "a")
	if first[0] != 12 || !slices.Equal(tokens[0], want[12:]) || last.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH {
		t.Errorf("got %v from %d on, ending with %v", tokens[0], first[0], last)
	}
	f := next(t, s.finished, "report")
	accounts := map[int32]*account{}
	for len(s.progress) > 0 {
		learn(t, accounts, (<-s.progress).Choices)
	}
	learn(t, accounts, f.Choices)
	if a := accounts[0]; a.first != 12 || !slices.Equal(a.tokens, want[12:]) || f.Usage.CompletionTokens != 30 {
		t.Errorf("reported %+v and %v", a, f)
	}
	// All of it generated: nothing is left but the end.
	q = ask("bb", 30)
	q.Generated = []*pb.TokenIds{{Ids: outputOf(q.Prompt, 30)}}
	s.dispatch(t, 1, 2, q)
	e := next(t, g.events, "event")
	if e.First != 30 || len(e.TokenIds) != 0 || !e.RequestDone || e.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH {
		t.Errorf("event is %v", e)
	}
	f = next(t, s.finished, "report")
	if len(f.Choices) != 1 || f.Choices[0].First != 30 || f.Choices[0].FinishReason != pb.FinishReason_FINISH_REASON_LENGTH {
		t.Errorf("report is %v", f)
	}
	if n := w.Stats().GeneratedTokens; n != 18 {
		t.Errorf("%d tokens generated, want 18", n)
	}
}

// TestLogprobsGoOn: one that wants log-probabilities is streamed from its first token on, to a gateway
// that takes it over too, and generates no more than what is left.
func TestLogprobsGoOn(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	q := ask("a", 30)
	want := outputOf(q.Prompt, 30)
	q.Sampling.Logprobs, q.Sampling.PromptLogprobs = new(int32), new(int32)
	q.Generated = []*pb.TokenIds{{Ids: want[:12]}}
	s.dispatch(t, 1, 1, q)
	w.gate.let(-1)
	check := func(g *gateway) {
		t.Helper()
		var tokens []int32
		for done := false; !done; {
			e := next(t, g.events, "event")
			if int(e.First) != len(tokens) || len(e.Logprobs) != len(e.TokenIds) || (e.First == 0) != (len(e.PromptLogprobs) == len(q.Prompt)-1) {
				t.Errorf("event from %d on after %d tokens: %d with %d log-probabilities, %d of the prompt", e.First, len(tokens), len(e.TokenIds), len(e.Logprobs), len(e.PromptLogprobs))
			}
			seen := slices.Concat(q.Prompt, tokens)
			for i, id := range e.TokenIds {
				if p := e.Logprobs[i].Chosen; p.TokenId != id || p.Logprob != enginetest.Logprob(seen, id) {
					t.Errorf("token %d has %v", len(tokens), p)
				}
				tokens, seen = append(tokens, id), append(seen, id)
			}
			done = e.RequestDone
		}
		if !slices.Equal(tokens, want) {
			t.Errorf("got %v, want %v", tokens, want)
		}
	}
	check(g)
	s.redirect(t, 1, "a", "g2")
	check(attachAs(t, w, "g2"))
	if n := w.Stats().GeneratedTokens; n != 19 { // the last of the known ones is drawn again
		t.Errorf("%d tokens generated, want 19", n)
	}
}

// TestRedirects: another gateway takes a running and an ended request over, from their first tokens
// on; the one before hears nothing more and can abort nothing. An old leader redirects nothing.
func TestRedirects(t *testing.T) {
	l := newLeader(t, 2)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	old := attach(t, w)
	long, short := ask("long", 60), ask("s", 2)
	s.dispatch(t, 2, 1, short, long) // the steps that may pass are enough for the first
	w.gate.let(6)
	for ended := false; !ended; {
		e := next(t, old.events, "event")
		ended = e.RequestId == "s" && e.RequestDone
	}
	s.redirect(t, 1, "long", "g3")
	s.redirect(t, 2, "long", "g2")
	s.redirect(t, 2, "s", "g2")
	g := attachAs(t, w, "g2")
	if e := next(t, g.events, "event"); e.First != 0 {
		t.Errorf("the new gateway's first event is %v", e)
	} else {
		g.events <- e
	}
	abort := &pb.AttachRequest{Message: &pb.AttachRequest_Abort{Abort: &pb.AbortRequest{RequestId: "long"}}}
	if err := old.stream.Send(abort); err != nil {
		t.Fatal(err)
	}
	heard := len(old.events)
	attach(t, w) // the abort has been read when this session stands
	w.gate.let(-1)
	got := map[string][]int32{}
	for done := 0; done < 2; {
		e := next(t, g.events, "event")
		got[e.RequestId] = append(got[e.RequestId][:e.First], e.TokenIds...)
		if e.RequestDone {
			done++
		}
	}
	if !slices.Equal(got["long"], outputOf(long.Prompt, 60)) || !slices.Equal(got["s"], outputOf(short.Prompt, 2)) {
		t.Errorf("the new gateway got %v", got)
	}
	if n := len(old.events); n > heard+1 { // one may have been on its way
		t.Errorf("the old gateway heard %d more events", n-heard)
	}
	// Where it streams to already, nothing is repeated.
	s.redirect(t, 2, "long", "g2")
	s.dispatch(t, 2, 2, &pb.Request{Id: "next", GatewayId: "g2", Prompt: []int32{1}, Sampling: &pb.SamplingParams{MaxTokens: 1}})
	if e := next(t, g.events, "event"); e.RequestId != "next" {
		t.Errorf("repeated %v", e)
	}
}

// TestResumesOneRequest: a gateway with a gap gets one request again from where it says, on the stream
// that it has; a stranger does not.
func TestResumesOneRequest(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	w.gate.let(-1)
	s := next(t, l.sessions, "session")
	g, other := attach(t, w), attachAs(t, w, "g2")
	q := ask("a", 20)
	s.dispatch(t, 1, 1, q)
	g.collect(t, "a")
	resume := &pb.AttachRequest{Message: &pb.AttachRequest_Resume{Resume: &pb.ResumePoint{RequestId: "a", Received: []int32{7}}}}
	for _, to := range []*gateway{other, g} {
		if err := to.stream.Send(resume); err != nil {
			t.Fatal(err)
		}
	}
	tokens, first, last := g.collect(t, "a")
	if first[0] != 7 || !slices.Equal(tokens[0], outputOf(q.Prompt, 20)[7:]) || last.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH {
		t.Errorf("got %v from %d on, ending with %v", tokens[0], first[0], last)
	}
	if len(other.events) != 0 {
		t.Errorf("a stranger got %v", <-other.events)
	}
}

// TestLeaderAway: without any leader requests run on and stream to their ends; the leader that comes
// back hears what runs and what ended, with every token.
func TestLeaderAway(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	short, long := ask("s", 20), ask("long", 300)
	s.dispatch(t, 1, 1, short, long)
	w.gate.let(3)
	next(t, s.progress, "progress")
	l.mu.Lock()
	l.away, l.term = true, 2
	l.mu.Unlock()
	s.end <- status.Error(codes.Unavailable, "no quorum")
	w.gate.let(25)
	if tokens, _, _ := g.collect(t, "s"); !slices.Equal(tokens[0], outputOf(short.Prompt, 20)) {
		t.Errorf("without a leader the gateway got %v", tokens[0])
	}
	l.mu.Lock()
	l.away = false
	l.mu.Unlock()
	s = next(t, l.sessions, "session with the leader that came back")
	slices.Sort(s.hello.Running)
	if !slices.Equal(s.hello.Running, []string{"long", "s"}) {
		t.Errorf("hello names %v", s.hello.Running)
	}
	accounts := map[int32]*account{}
	f := next(t, s.finished, "report")
	learn(t, accounts, f.Choices)
	if f.RequestId != "s" || accounts[0].first != 0 || !slices.Equal(accounts[0].tokens, outputOf(short.Prompt, 20)) {
		t.Errorf("report is %v", f)
	}
	p := next(t, s.progress, "progress")
	if c := p.Choices[0]; p.RequestId != "long" || c.First != 0 || !slices.Equal(c.TokenIds, outputOf(long.Prompt, len(c.TokenIds))) || len(c.TokenIds) < 20 {
		t.Errorf("progress is %v", p)
	}
}

// TestSilentLeader: a leader that has answered heartbeats and stops, without its connection ending, is
// left for another.
func TestSilentLeader(t *testing.T) {
	silent, l := newLeader(t, 1), newLeader(t, 2)
	silent.answers, l.away = true, true
	start(t, nil, silent.address, l.address)
	next(t, silent.sessions, "session")
	silent.mu.Lock()
	silent.away = true
	silent.mu.Unlock()
	l.mu.Lock()
	l.away = false
	l.mu.Unlock()
	next(t, l.sessions, "session with the next leader")
}

// TestHandsOver: asked to hand over, a worker returns what runs at once, with every token that it
// generated, which the gateway gets as well and no end.
func TestHandsOver(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, func(s *Settings) { s.DrainTimeout = time.Hour }, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	q := ask("a", 400)
	s.dispatch(t, 1, 3, q)
	w.gate.let(10)
	accounts := map[int32]*account{}
	learn(t, accounts, next(t, s.progress, "progress").Choices)
	drain := &pb.WorkResponse{Message: &pb.WorkResponse_Drain{Drain: &pb.Drain{HandOver: true}}}
	if err := s.stream.Send(drain); err != nil {
		t.Fatal(err)
	}
	for len(s.finished) == 0 {
		w.gate.let(1) // the steps in flight have to end
		next(t, s.beats, "heartbeat")
	}
	f := next(t, s.finished, "report")
	if !f.Returned || f.FinishReason != 0 || f.Index != 3 {
		t.Errorf("report is %v", f)
	}
	for len(s.progress) > 0 {
		learn(t, accounts, (<-s.progress).Choices)
	}
	learn(t, accounts, f.Choices)
	known := accounts[0].tokens
	if n := int(w.Stats().GeneratedTokens); len(known) != n || !slices.Equal(known, outputOf(q.Prompt, n)) || n == 0 || n == 400 {
		t.Errorf("the leader knows %d tokens of %d", len(known), n)
	}
	if err := next(t, w.ended, "end of Run"); err != nil {
		t.Error(err)
	}
	w.ended <- nil
	next(t, g.ended, "end of the stream")
	var got []int32
	for len(g.events) > 0 {
		e := <-g.events
		got = append(got, e.TokenIds...)
		if e.FinishReason != 0 || e.RequestDone {
			t.Errorf("the gateway heard %v", e)
		}
	}
	if !slices.Equal(got, known) {
		t.Errorf("the gateway got %d tokens, the leader knows %d", len(got), len(known))
	}
}

// TestOlderRunGivesWay: a request that is dispatched again while an older run of it still ends is
// returned, and nothing of the older run is taken for the new one's.
func TestOlderRunGivesWay(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	q := ask("a", 50)
	s.dispatch(t, 1, 1, q)
	w.gate.let(3)
	next(t, g.events, "event")
	s.revoke(t, 1, "a")
	s.dispatch(t, 1, 2, q)
	for {
		if f := next(t, s.finished, "report"); f.Index == 2 {
			if !f.Returned || len(f.Choices) != 0 {
				t.Errorf("report is %v", f)
			}
			break
		}
		w.gate.let(-1)
	}
	w.gate.let(-1)
	for len(w.engine.Live()) > 0 {
		next(t, s.beats, "heartbeat")
	}
	s.dispatch(t, 1, 3, q)
	for {
		e := next(t, g.events, "event")
		if e.Index == 1 && e.FinishReason == 0 {
			continue // on its way when the request was revoked
		}
		if e.Index != 3 {
			t.Fatalf("the gateway heard %v", e)
		}
		if e.RequestDone {
			break
		}
	}
}

// TestCacheIsTold: a session hears of what the cache holds, first all and then what is new.
func TestCacheIsTold(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	w.gate.let(-1)
	s := next(t, l.sessions, "session")
	q := ask("a", 40) // 44 tokens, of which the last is never computed: 2 blocks
	s.dispatch(t, 1, 1, q)
	next(t, s.finished, "report")
	want := kvcache.Hashes(nil, kvcache.Root(nil, nil), append(slices.Clone(q.Prompt), outputOf(q.Prompt, 40)...), 16)[:2]
	stored := func(s *leaderSession) {
		t.Helper()
		var got []byte
		for first := true; len(got) < 32; first = false {
			e := next(t, s.cache, "cache event")
			if first != (e.Kind == pb.CacheEvent_KIND_RESET) {
				t.Fatalf("event is %v", e)
			}
			got = append(got, e.Hashes...)
		}
		if !bytes.Equal(got, append(want[0][:], want[1][:]...)) {
			t.Errorf("stored %x, want %v", got, want)
		}
	}
	stored(s)
	s.end <- status.Error(codes.Unavailable, "lost")
	stored(next(t, l.sessions, "second session"))
}
