package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/quire-serve/quire/gateway/gatewaytest"
	"github.com/quire-serve/quire/model/chat"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// streams are requests of every kind that a stream can be; whole asks for the same at once.
var streams = map[string]string{
	"chat":                `{"messages":[{"role":"user","content":"hi"}],"max_tokens":14}`,
	"chat logprobs":       `{"messages":[{"role":"user","content":"hi"}],"max_tokens":9,"logprobs":true,"top_logprobs":2,"n":2}`,
	"chat choices":        `{"messages":[{"role":"user","content":"hi"}],"max_tokens":12,"n":3,"stop":["a\u20ac","bb","\""]}`,
	"chat constraint":     `{"messages":[{"role":"user","content":"hi"}],"max_tokens":12,"n":2,"response_format":{"type":"json_object"}}`,
	"chat ids":            `{"messages":[{"role":"user","content":"hi"}],"max_tokens":9,"n":2,"return_token_ids":true}`,
	"ids":                 `{"prompt":["one","two"],"n":2,"max_tokens":7,"return_token_ids":true}`,
	"stop":                `{"prompt":"x","max_tokens":14,"stop":["ab","b\u20aca"]}`,
	"stop, min tokens":    `{"prompt":"x","max_tokens":14,"n":2,"stop":["a"],"min_tokens":6,"stop_token_ids":[98]}`,
	"echo":                `{"prompt":"hello","max_tokens":6,"n":2,"echo":true}`,
	"echo logprobs":       `{"prompt":["hello","x\u20ac"],"max_tokens":6,"n":2,"echo":true,"logprobs":2,"stop":["aa"]}`,
	"score":               `{"prompt":["hello","ho"],"max_tokens":0,"echo":true,"logprobs":2}`,
	"prompts":             `{"prompt":["one","two","three"],"n":2,"max_tokens":7}`,
	"prompts logprobs":    `{"prompt":["one","two"],"n":2,"max_tokens":7,"logprobs":0,"stop":["ba","\u20ac\u20ac"]}`,
	"stop in output":      `{"prompt":"x","max_tokens":14,"n":2,"stop":["ab","b\u20aca"],"include_stop_str_in_output":true,"logprobs":1,"return_token_ids":true}`,
	"chat, stop shown":    `{"messages":[{"role":"user","content":"hi"}],"max_tokens":12,"n":2,"stop":["a\u20ac"],"stop_token_ids":[98],"min_tokens":3,"no_stop_trim":true,"skip_special_tokens":false,"logprobs":true}`,
	"completion, special": `{"prompt":[[1,2],[3]],"max_tokens":7,"skip_special_tokens":false,"stop":["\u20ac"]}`,
}

// play is one request with its whole output, of which nodes know more and more.
type play struct {
	t      *rapid.T
	g      *Gateway
	path   func(context.Context, *fields, caller) (*call, opener, *apiError)
	body   string
	output [][]*pb.Output // of each prompt, the choices
}

// letters are what the streams' choices are made of: they cut characters and begin stop strings.
var letters = []int32{'a', 'a', 'b', 'b', '"', 0xe2, 0x82, 0xac, gatewaytest.TurnEnd}

func newPlay(t *rapid.T, g *Gateway, name string) *play {
	p := &play{t: t, g: g, path: g.completionCall, body: `{"model":"test","stream":true,"seed":7,"stream_options":{"include_usage":true},` + streams[name][1:]}
	if strings.HasPrefix(name, "chat") {
		p.path = g.chatCall
	}
	c, _ := p.call(p.body)
	for i := range c.prompts {
		drawn := map[int][]int32{}
		p.output = append(p.output, gatewaytest.Answer(g.request("r", c, &c.prompts[i]), func(_ *pb.Request, choice, position int) int32 {
			for len(drawn[choice]) <= position {
				drawn[choice] = append(drawn[choice], rapid.SampledFrom(letters).Draw(t, "token"))
			}
			return drawn[choice][position]
		}))
	}
	return p
}

func (p *play) call(body string) (*call, opener) {
	f, e := parseBody([]byte(body))
	if e != nil {
		p.t.Fatalf("%v", e)
	}
	c, open, e := p.path(context.Background(), f, caller{id: "r", named: true})
	if e != nil {
		p.t.Fatalf("%v", e)
	}
	return c, open
}

// node is a gateway's lives of the request, as far as it knows the output.
func (p *play) node(c *call) []*live {
	var lives []*live
	for i := range c.prompts {
		l := newLive(p.g.request(fmt.Sprint("r", i), c, &c.prompts[i]), c.model, true, time.Unix(0, 0))
		close(l.admitted)
		lives = append(lives, l)
	}
	return lives
}

// deliver brings a choice's output up to so many tokens, as its worker does.
func (p *play) deliver(l *live, prompt, choice, to int) {
	o, have := p.output[prompt][choice], l.choices[choice]
	if to < len(have.tokens) || have.finish != 0 {
		return
	}
	ev := &pb.TokenEvent{Choice: int32(choice), First: int32(len(have.tokens)), TokenIds: o.TokenIds[len(have.tokens):to], Term: 1}
	if s := l.request.Sampling; s.Logprobs != nil {
		ev.Logprobs = gatewaytest.Logprobs(ev.TokenIds, int(*s.Logprobs))
		if s.PromptLogprobs != nil {
			ev.PromptLogprobs = gatewaytest.Logprobs(l.request.Prompt[1:], int(*s.PromptLogprobs))
		}
	}
	// The end comes with the last tokens or after them.
	if to == len(o.TokenIds) && (len(ev.TokenIds) == 0 || rapid.Bool().Draw(p.t, "ends")) {
		ev.FinishReason, ev.StopReason = o.FinishReason, o.StopReason
		done := true
		for i := range l.choices {
			done = done && (i == choice || l.choices[i].finish != 0)
		}
		ev.RequestDone = done
	}
	l.apply("w", ev, time.Unix(1, 0))
}

// more lets some choices' outputs grow.
func (p *play) more(lives []*live) {
	for i, l := range lives {
		for k := range l.choices {
			if have := len(l.choices[k].tokens); rapid.Bool().Draw(p.t, "grows") {
				p.deliver(l, i, k, rapid.IntRange(have, len(p.output[i][k].TokenIds)).Draw(p.t, "to"))
			}
		}
	}
}

// all completes the outputs.
func (p *play) all(lives []*live) {
	for i, l := range lives {
		for !l.done {
			for k := range l.choices {
				p.deliver(l, i, k, len(p.output[i][k].TokenIds))
			}
		}
	}
}

func (p *play) open(c *call, lives []*live) *answer {
	a := p.g.newAnswer(c)
	for _, l := range lives {
		a.add(l)
	}
	return a
}

// undisturbed is the answer with no break, streamed or whole.
func (p *play) undisturbed(body string) string {
	c, open := p.call(body)
	lives := p.node(c)
	p.all(lives)
	a, out := p.open(c, lives), open(time.Unix(0, 0))
	pieces, e := a.look()
	if e != nil {
		p.t.Fatalf("%v", e)
	}
	if c.whole {
		return gatewaytest.Gather(p.t, string(out.whole(nil, slices.Clone(pieces), a.usage())))
	}
	return gatewaytest.Gather(p.t, string(a.word(nil, pieces, out, newPen(c))))
}

// disturbed is what a client gathers that breaks off after any events, and resumes with the newest id at
// nodes that know anything of the output, from nothing to all.
func (p *play) disturbed() string {
	var got []string
	last, breaks := "", 0
	c, _ := p.call(p.body)
	lives := p.node(c)
	for {
		c, open := p.call(p.body)
		if last == "" {
			got = nil // nothing to go on from
		} else if e := c.resume(last); e != nil {
			p.t.Fatalf("after %q: %v", last, e)
		}
		if breaks > 0 && rapid.Bool().Draw(p.t, "another node") {
			lives = p.node(c)
		}
		a, out, ids := p.open(c, lives), open(time.Unix(0, 0)), newPen(c)
		for broken := false; !broken; {
			if breaks == 12 {
				p.all(lives) // enough of it
			} else {
				p.more(lives)
			}
			pieces, e := a.look()
			if e != nil {
				p.t.Fatalf("after %q: %v", last, e)
			}
			sent := strings.SplitAfter(string(a.word(nil, pieces, out, ids)), "\n\n")
			sent = sent[:len(sent)-1]
			if breaks < 12 && rapid.IntRange(0, 3).Draw(p.t, "breaks") == 0 {
				sent, broken = sent[:rapid.IntRange(0, len(sent)).Draw(p.t, "received")], true
			}
			for _, event := range sent {
				if id, _, ok := strings.Cut(strings.TrimPrefix(event, "id: "), "\n"); ok && strings.HasPrefix(event, "id: ") {
					last = id
				}
				got = append(got, event)
			}
			if len(got) > 0 && got[len(got)-1] == "data: [DONE]\n\n" {
				return gatewaytest.Gather(p.t, strings.Join(got, ""))
			}
		}
		breaks++
	}
}

// rpc is what gathers over gRPC: the request's choices, as text and ids.
type rpc struct {
	texts  []string
	ids    [][]int32
	probs  []int
	finish []pb.FinishReason
	usage  *pb.Usage
}

func newRPC(choices int) *rpc {
	return &rpc{texts: make([]string, choices), ids: make([][]int32, choices), probs: make([]int, choices), finish: make([]pb.FinishReason, choices)}
}

// take adds a message up. A choice that had ended says so again, which docs say is to be ignored.
func (r *rpc) take(m *pb.GenerateResponse, ended []bool) {
	if ended[m.Index] {
		r.usage = m.Usage
		return
	}
	r.texts[m.Index] += m.Text
	r.ids[m.Index] = append(r.ids[m.Index], m.TokenIds...)
	r.probs[m.Index] += len(m.Logprobs)
	r.finish[m.Index], r.usage = m.FinishReason, m.Usage
}

func (r *rpc) String() string { return fmt.Sprint(r.texts, r.ids, r.probs, r.finish, r.usage) }

// overRPC is disturbed and undisturbed for Generate and Resume; it compares the two.
func (p *play) overRPC() {
	c, _ := p.call(p.body)
	open := func(lives []*live, received []int32) *answer {
		l := lives[0]
		c := &call{caller: c.caller, model: c.model, params: l.request.Sampling, prompts: []prompt{{maxTokens: l.request.Sampling.MaxTokens}}}
		if e := c.receive(received); e != nil {
			p.t.Fatalf("%v", e)
		}
		return p.open(c, lives[:1])
	}
	look := func(a *answer) []*pb.GenerateResponse {
		pieces, e := a.look()
		if e != nil {
			p.t.Fatalf("%v", e)
		}
		return slices.Collect(a.messages(pieces))
	}
	lives := p.node(c)
	n := len(lives[0].choices)
	p.all(lives)
	want, got := newRPC(n), newRPC(n)
	for _, m := range look(open(lives, nil)) {
		want.take(m, make([]bool, n))
	}
	for breaks := 0; ; breaks++ {
		received, ended := make([]int32, n), make([]bool, n)
		for i := range n {
			received[i], ended[i] = int32(len(got.ids[i])), got.finish[i] != 0
		}
		if breaks == 0 || rapid.Bool().Draw(p.t, "another node") {
			lives = p.node(c)
		}
		a := open(lives, received)
		for broken := false; !broken; {
			if breaks == 12 {
				p.all(lives)
			} else {
				p.more(lives)
			}
			sent := look(a)
			if breaks < 12 && rapid.IntRange(0, 3).Draw(p.t, "breaks") == 0 {
				sent, broken = sent[:rapid.IntRange(0, len(sent)).Draw(p.t, "received")], true
			}
			for _, m := range sent {
				got.take(m, ended)
			}
			if !broken && a.ended() {
				if got.String() != want.String() {
					p.t.Fatalf("after %d breaks\ngot  %v\nwant %v", breaks, got, want)
				}
				return
			}
		}
	}
}

// TestBreaksAndResumesAddUp is the promise to clients: whatever events they break off after, however
// often, and wherever they resume, what they have is the undisturbed answer, of every kind of request,
// and that is the one that is not streamed.
func TestBreaksAndResumesAddUp(t *testing.T) {
	template, err := chat.New(gatewaytest.ChatTemplate, chat.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Settings{NodeID: "n", Nodes: func() []string { return nil }, Dial: dialAdmitAll, Log: slog.New(slog.DiscardHandler),
		Models: []Model{{ID: "test", Tokenizer: gatewaytest.Tokenizer(), Chat: template, ContextLength: 2048}}})
	if err != nil {
		t.Fatal(err)
	}
	for name := range streams {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				p := newPlay(t, g, name)
				want := p.undisturbed(p.body)
				whole := strings.Replace(strings.Replace(p.body, `"stream":true,`, "", 1), `"stream_options":{"include_usage":true},`, "", 1)
				if got := p.undisturbed(whole); got != want {
					t.Fatalf("whole    %s\nstreamed %s", got, want)
				}
				if got := p.disturbed(); got != want {
					t.Fatalf("got  %s\nwant %s", got, want)
				}
				p.overRPC()
			})
		})
	}
}

// TestWritesAreBounded reads an answer that is all there, of many choices with the largest
// log-probabilities: each write is 1 MB at most, and they add up.
func TestWritesAreBounded(t *testing.T) {
	g, err := New(Settings{NodeID: "n", Nodes: func() []string { return nil }, Dial: dialAdmitAll, Log: slog.New(slog.DiscardHandler),
		Models: []Model{{ID: "test", Tokenizer: gatewaytest.Tokenizer(), ContextLength: 100_000}}})
	if err != nil {
		t.Fatal(err)
	}
	const n, tokens = 16, 1000
	f, _ := parseBody([]byte(`{"model":"test","prompt":"x","stream":true,"max_tokens":1000,"n":16,"logprobs":20}`))
	c, open, e := g.completionCall(t.Context(), f, caller{id: "r", named: true})
	if e != nil {
		t.Fatal(e)
	}
	l := newLive(g.request("r", c, &c.prompts[0]), c.model, true, time.Unix(0, 0))
	for i := range n {
		ids := slices.Repeat([]int32{'a'}, tokens)
		l.apply("w", &pb.TokenEvent{Choice: int32(i), TokenIds: ids, Logprobs: gatewaytest.Logprobs(ids, 20), Term: 1,
			FinishReason: pb.FinishReason_FINISH_REASON_LENGTH, RequestDone: i == n-1}, time.Unix(1, 0))
	}
	a := g.newAnswer(c)
	a.add(l)
	out, ids, got := open(time.Unix(0, 0)), newPen(c), 0
	for !a.ended() {
		pieces, e := a.look()
		if e != nil || len(pieces) == 0 {
			t.Fatalf("%v, %d pieces", e, len(pieces))
		}
		for _, p := range pieces {
			got += len(p.text)
		}
		if b := a.word(nil, pieces, out, ids); len(b) > 1<<20 {
			t.Fatalf("%d bytes at once", len(b))
		}
	}
	if got != n*tokens {
		t.Errorf("%d characters, want %d", got, n*tokens)
	}
}

// FuzzMarks reads ids of events: what it takes is within the limits and is written as it was read, and
// what it refuses it refuses in a few words.
func FuzzMarks(f *testing.F) {
	for _, s := range []string{"17", "17+", "17,12!", "0", "", ",", "+", "1!+", "-1", "99999999999999999999", "007,1", "1_0", "+1", strings.Repeat("1,", 1_000_000)} {
		f.Add(s, 2)
	}
	f.Add("1", 0)
	f.Add("1", -1)
	f.Add("1", 1<<30)
	f.Fuzz(func(t *testing.T, s string, choices int) {
		list, e := parseMarks(s, choices, 1000)
		if e != nil {
			if e.status != 400 || e.param != lastEvent || len(e.message) > 1024 {
				t.Fatalf("%q: %d %q", clip(s, 64), e.status, e.message)
			}
			return
		}
		for _, m := range list {
			if m.tokens < 0 || m.tokens > 1000 || m.ended && !m.text {
				t.Fatalf("%q became %+v", s, m)
			}
		}
		if written := string(list.appendID(nil)); written != s || len(list) != choices {
			t.Fatalf("%q became %+v, written %q", s, list, written)
		}
	})
}
