package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/quire-serve/quire/gateway"
	"github.com/quire-serve/quire/gateway/gatewaytest"
	"github.com/quire-serve/quire/model/chat"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// resumable are requests of every kind that a stream can be.
var resumable = map[string]struct{ path, body string }{
	"chat":          {chatPath, `{"model":"test","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":14,"seed":7,"stream_options":{"include_usage":true}}`},
	"chat logprobs": {chatPath, `{"model":"test","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":6,"seed":7,"logprobs":true,"top_logprobs":2}`},
	"chat choices":  {chatPath, `{"model":"test","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":9,"seed":7,"n":2,"stop":["Hé\"\n!"]}`},
	"stop":          {textPath, `{"model":"test","prompt":"x","stream":true,"max_tokens":14,"stop":["\\x ","o w"],"stream_options":{"include_usage":true}}`},
	"min tokens":    {textPath, `{"model":"test","prompt":"x","stream":true,"max_tokens":14,"stop":["\n"],"min_tokens":6}`},
	"echo":          {textPath, `{"model":"test","prompt":"hello","stream":true,"max_tokens":6,"echo":true,"logprobs":2}`},
	"score":         {textPath, `{"model":"test","prompt":"hello","stream":true,"max_tokens":0,"echo":true,"logprobs":2}`},
	"prompts":       {textPath, `{"model":"test","prompt":["one","two"],"n":2,"stream":true,"max_tokens":5,"seed":7}`},
}

// speech has characters of several bytes, which steps cut, and ends in the middle of one stop string.
const speech = "Hé\"\n\\x €uro w\U0001F600nd o"

// TestResumeAnywhere cuts streams of every kind after each number of events, again after one more, and so
// on, resumes them at one gateway and the other in turn, and wants what the parts add up to be the
// undisturbed stream.
func TestResumeAnywhere(t *testing.T) {
	o := gatewaytest.Options{Workers: 2, TokensPerStep: 2, Reply: gatewaytest.Say(speech)}
	here := open(t, o, frozen)
	there := join(t, here.Cluster, o, "node-2", frozen)
	for name, c := range resumable {
		t.Run(name, func(t *testing.T) {
			whole := here.post(c.path, c.body).body
			want := gatewaytest.Gather(t, whole)
			for cut := range len(events(t, whole)) {
				key := fmt.Sprint(strings.ReplaceAll(name, " ", "-"), cut)
				var got strings.Builder
				headers := []string{"Idempotency-Key", key}
				for turn, ended := 0, false; !ended; turn++ {
					s := []*door{here, there}[turn%2].stream(c.path, c.body, headers...)
					if s.resp.StatusCode != 200 {
						t.Fatalf("cut %d at %q: status %d, %s", cut, s.id, s.resp.StatusCode, s.next())
					}
					for range cut + turn { // events are fewer where steps came together
						if data := s.next(); data != "" {
							got.WriteString("data: " + data + "\n\n")
							ended = data == "[DONE]"
						}
					}
					s.close()
					if s.id != "" {
						headers = []string{"Idempotency-Key", key, "Last-Event-ID", s.id}
					} else if len(headers) == 2 && !ended {
						got.Reset() // nothing to go on from
					}
				}
				if got := gatewaytest.Gather(t, got.String()); got != want {
					t.Fatalf("cuts after each %d\ngot  %s\nwant %s", cut, got, want)
				}
			}
		})
	}
	if s := here.State(); len(s.Aborts) != 0 || s.Adoptions == 0 {
		t.Errorf("aborts %v, %d adoptions", s.Aborts, s.Adoptions)
	}
}

// TestResumeRunning resumes while the request runs, and kills its worker with the gateway it was at.
func TestResumeRunning(t *testing.T) {
	o := gatewaytest.Options{Workers: 2, Manual: true}
	for _, body := range []string{
		`{"model":"test","prompt":"hi","stream":true,"max_tokens":60,"seed":3,"n":2}`,
		`{"model":"test","prompt":"hi","stream":true,"max_tokens":60,"seed":3,"n":2,"logprobs":1}`,
	} {
		want := gatewaytest.Gather(t, open(t, gatewaytest.Options{}).post(textPath, body).body)
		here := open(t, o)
		there := join(t, here.Cluster, o, "node-2")
		here.Step(10)
		s := here.stream(textPath, body, "Idempotency-Key", "k")
		var got, old strings.Builder
		for range 2 {
			got.WriteString("data: " + s.next() + "\n\n")
		}
		last := s.id
		old.WriteString(got.String())
		here.KillWorker(here.WorkerOf("k"))
		opened := make(chan *stream)
		go func() { opened <- there.stream(textPath, body, "Idempotency-Key", "k", "Last-Event-ID", last) }()
		here.Await(func(s gatewaytest.State) bool { return s.Adoptions == 1 })
		// The old reader is told that its request is elsewhere, or goes on with what the log has.
		follows := !strings.Contains(body, "logprobs")
		if !follows {
			end := ""
			for data := s.next(); data != ""; data = s.next() {
				end = data
			}
			if c := decode[chunk](t, end); c.Error == nil || c.Error.Code != "request_moved" {
				t.Errorf("the old stream ends with %s", end)
			}
		}
		here.Step(100)
		resumed := <-opened
		for data := resumed.next(); data != ""; data = resumed.next() {
			got.WriteString("data: " + data + "\n\n")
		}
		if got := gatewaytest.Gather(t, got.String()); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if follows {
			for data := s.next(); data != ""; data = s.next() {
				old.WriteString("data: " + data + "\n\n")
			}
			if got := gatewaytest.Gather(t, old.String()); got != want {
				t.Errorf("the old stream\ngot  %s\nwant %s", got, want)
			}
		}
		if s := here.State(); len(s.Aborts) != 0 || len(s.Wrong) != 0 || s.Live != 0 {
			t.Errorf("aborts %v, wrong %v, %d live", s.Aborts, s.Wrong, s.Live)
		}
	}
}

// TestReplay asks again under the same id, here and elsewhere, while the request runs and after it
// ended: the answer is the same from the start, and the request ran once unless its output is gone.
func TestReplay(t *testing.T) {
	o := gatewaytest.Options{Manual: true}
	here := open(t, o)
	there := join(t, here.Cluster, o, "node-2")
	const body = `{"model":"test","prompt":"hi","stream":true,"max_tokens":30,"seed":3,"stream_options":{"include_usage":true}}`
	here.Step(10)
	first := here.stream(textPath, body, "Idempotency-Key", "k")
	first.next()
	second := here.stream(textPath, body, "Idempotency-Key", "k")
	second.next()
	first.close() // the second reader keeps it alive
	here.Step(20)
	if got := second.text(); got != babble("hi", 3, 30)[1:] && !strings.HasSuffix(babble("hi", 3, 30), got) {
		t.Errorf("the second reader got %q", got)
	}
	whole := strings.Replace(strings.Replace(body, `"stream":true,`, "", 1), `,"stream_options":{"include_usage":true}`, "", 1)
	want := here.post(textPath, whole, "Idempotency-Key", "k").body
	if got := decode[chunk](t, want).Choices[0].Text; got != babble("hi", 3, 30) {
		t.Errorf("replayed: %q", got)
	}
	if got := there.post(textPath, whole, "Idempotency-Key", "k").body; got != want {
		t.Errorf("elsewhere\ngot  %s\nwant %s", got, want)
	}
	if r := there.post(textPath, streamed, "Idempotency-Key", "k"); r.status != 409 {
		t.Errorf("another body: %d %s", r.status, r.body)
	}
	if s := here.State(); s.Reruns != 0 || s.Admitted != 1 || len(s.Aborts) != 0 {
		t.Errorf("%d reruns, %d admitted, aborts %v", s.Reruns, s.Admitted, s.Aborts)
	}
	here.ForgetOutputs()
	here.Step(100)
	if got := there.post(textPath, whole, "Idempotency-Key", "k").body; got != want {
		t.Errorf("run again\ngot  %s\nwant %s", got, want)
	}
	if n := here.State().Reruns; n != 1 {
		t.Errorf("%d reruns", n)
	}
}

// atOnce posts two bodies at the same time under one key, each at a gateway of its own.
func atOnce(doors [2]*door, key string, bodies [2]string) (replies [2]reply) {
	var both sync.WaitGroup
	for i := range 2 {
		both.Go(func() { replies[i] = doors[i].post(textPath, bodies[i], "Idempotency-Key", key) })
	}
	both.Wait()
	return replies
}

// TestOneBodyWinsAKey sends two bodies at once under one key, at one gateway and at two: one is answered,
// the other refused for good.
func TestOneBodyWinsAKey(t *testing.T) {
	o := gatewaytest.Options{Workers: 2}
	here := open(t, o)
	there := join(t, here.Cluster, o, "node-2")
	for name, prompts := range map[string][2]string{
		"one prompt":       {`"A"`, `"B"`},
		"the last differs": {`["A","B","C"]`, `["A","B","D"]`},
		"the first":        {`["A","B","C"]`, `["D","B","C"]`},
		"one and several":  {`"A"`, `["B","C"]`},
	} {
		for place, doors := range map[string][2]*door{"one gateway": {here, here}, "two": {here, there}} {
			t.Run(name+", "+place, func(t *testing.T) {
				for i := range 10 {
					var bodies [2]string
					for k, prompt := range prompts {
						bodies[k] = fmt.Sprintf(`{"model":"test","max_tokens":40,"seed":%d,"prompt":%s}`, i, prompt)
					}
					r := atOnce(doors, fmt.Sprint(strings.ReplaceAll(name+place, " ", ""), i), bodies)
					if r[0].status+r[1].status != 200+409 {
						t.Fatalf("%d %s\n%d %s", r[0].status, r[0].body, r[1].status, r[1].body)
					}
				}
			})
		}
	}
}

// TestKeysNeverNameParts: a request of several prompts takes no id that another client's key could be.
func TestKeysNeverNameParts(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	const body = `{"model":"test","max_tokens":9,"seed":3,"prompt":%s}`
	if r := d.post(textPath, fmt.Sprintf(body, `["A","B","C"]`), "Idempotency-Key", "k"); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	parts := d.State().Requests
	for _, r := range parts {
		id := r.Id
		if id == "k" {
			continue
		}
		if r := d.post(textPath, fmt.Sprintf(body, `"D"`), "Idempotency-Key", id); r.status != 400 {
			t.Errorf("%q is a part's id, and as a key gets %d %s", id, r.status, r.body)
		}
	}
	if len(parts) != 3 {
		t.Errorf("admitted are %v", parts)
	}
	for _, key := range []string{"k.1", "k.2", "k-1", "k/1", "k:1", "k#1", "/k"} {
		if r := d.post(textPath, fmt.Sprintf(body, `"D"`), "Idempotency-Key", key); r.status != 200 || decode[chunk](t, r.body).Choices[0].Text != babble("D", 3, 9) {
			t.Errorf("key %q: %d %s", key, r.status, r.body)
		}
	}
}

// places is how many prompts the gateway is serving.
func (d *door) places() string {
	d.t.Helper()
	_, rest, _ := strings.Cut(d.do(http.MethodGet, "/metrics", "").body, "\nquire_gateway_requests ")
	n, _, _ := strings.Cut(rest, "\n")
	return n
}

// TestABodyWaitsForTheDecision: a body that has its key from another gateway is not refused here because
// another one, which will be refused, asked first here.
func TestABodyWaitsForTheDecision(t *testing.T) {
	o := gatewaytest.Options{}
	here := open(t, o)
	there := join(t, here.Cluster, o, "node-2")
	const body = `{"model":"test","max_tokens":9,"seed":3,"prompt":%s}`
	first, second := fmt.Sprintf(body, `["A","B"]`), fmt.Sprintf(body, `["A","C"]`)
	for i := range 3 {
		key := []string{"Idempotency-Key", fmt.Sprint("k", i)}
		want := there.post(textPath, first, key...)
		here.Elect(-1)
		var other, same reply
		var both sync.WaitGroup
		both.Go(func() { other = here.post(textPath, second, key...) })
		await(t, func() bool { return here.places() == "2" })
		answered := make(chan struct{})
		both.Go(func() { defer close(answered); same = here.post(textPath, first, key...) })
		await(t, func() bool {
			select {
			case <-answered:
				return true
			default:
				return here.places() == "4"
			}
		})
		here.Elect(0)
		both.Wait()
		if other.status != 409 || same.status != 200 || same.body != want.body {
			t.Errorf("the other body: %d %s\nthe same: %d %s\nwant %s", other.status, other.body, same.status, same.body, want.body)
		}
	}
}

// TestSameBodyAtOnceJoins sends one body twice at the same time under one key, streamed and whole, at one
// gateway and at two: both are answered with the same, and it runs once.
func TestSameBodyAtOnceJoins(t *testing.T) {
	o := gatewaytest.Options{Workers: 2}
	here := open(t, o)
	there := join(t, here.Cluster, o, "node-2")
	for place, doors := range map[string][2]*door{"one gateway": {here, here}, "two": {here, there}} {
		for _, stream := range []string{"true", "false"} {
			t.Run(place+", stream "+stream, func(t *testing.T) {
				before := here.State().Admitted
				for i := range 10 {
					body := fmt.Sprintf(`{"model":"test","max_tokens":200,"seed":%d,"prompt":["A","B"],"n":2,"stream":%s}`, i, stream)
					r := atOnce(doors, fmt.Sprint(stream, place[:3], i), [2]string{body, body})
					if r[0].status != 200 || r[1].status != 200 || gatewaytest.Gather(t, r[0].body) != gatewaytest.Gather(t, r[1].body) {
						t.Fatalf("%d %s\n%d %s", r[0].status, r[0].body, r[1].status, r[1].body)
					}
				}
				if s := here.State(); s.Admitted != before+20 || s.Reruns != 0 || len(s.Aborts) != 0 {
					t.Errorf("%d admitted, %d reruns, aborts %v", s.Admitted-before, s.Reruns, s.Aborts)
				}
			})
		}
	}
}

// TestRestartedGateway resumes at the gateway that died, under the name that it had.
func TestRestartedGateway(t *testing.T) {
	const body = `{"model":"test","prompt":"hi","stream":true,"max_tokens":60,"seed":3}`
	o := gatewaytest.Options{Manual: true}
	d := open(t, o)
	d.Step(10)
	s := d.stream(textPath, body, "Idempotency-Key", "k")
	got := decode[chunk](t, s.next()).Choices[0].Text
	last := s.id
	d.quit()
	again := join(t, d.Cluster, o, "node-1")
	d.Step(50)
	got += again.stream(textPath, body, "Idempotency-Key", "k", "Last-Event-ID", last).text()
	if got != babble("hi", 3, 60) {
		t.Errorf("got %q", got)
	}
	if s := d.State(); len(s.Aborts) != 0 || s.Admitted != 1 {
		t.Errorf("aborts %v, %d admitted", s.Aborts, s.Admitted)
	}
}

// TestResumeUnnamed goes on with a stream whose client had not named it, by the id in its events.
func TestResumeUnnamed(t *testing.T) {
	const body = `{"model":"test","prompt":"hi","stream":true,"max_tokens":60}`
	o := gatewaytest.Options{Manual: true}
	here := open(t, o)
	there := join(t, here.Cluster, o, "node-2")
	here.Step(10)
	s := here.stream(textPath, body)
	first := decode[chunk](t, s.next())
	key, last := strings.TrimPrefix(first.ID, "cmpl-"), s.id
	here.quit()
	here.Step(50)
	seed := *here.State().Requests[0].Sampling.Seed
	got := first.Choices[0].Text + there.stream(textPath, body, "Idempotency-Key", key, "Last-Event-ID", last).text()
	if got != babble("hi", seed, 60) {
		t.Errorf("got %q", got)
	}
}

// TestDefaultsOfAnotherGateway replays a request whose max_tokens was filled in by a gateway that saw
// more room than the one that is asked again.
func TestDefaultsOfAnotherGateway(t *testing.T) {
	o := gatewaytest.Options{ContextLength: 100}
	here := open(t, o)
	o.ContextLength = 80
	there := join(t, here.Cluster, o, "node-2")
	const body = `{"model":"test","messages":[{"role":"user","content":"hi"}],"seed":3}`
	want := here.post(chatPath, body, "Idempotency-Key", "k")
	if got := there.post(chatPath, body, "Idempotency-Key", "k"); want.status != 200 || got.body != want.body {
		t.Errorf("%d %s\nand then %d %s", want.status, want.body, got.status, got.body)
	}
	if r := there.post(chatPath, strings.Replace(body, "hi", "ho", 1), "Idempotency-Key", "k"); r.status != 409 {
		t.Errorf("another body: %d %s", r.status, r.body)
	}
}

// TestGrace lets a request that its client has named go on without it for a while, and no other.
func TestGrace(t *testing.T) {
	const body = `{"model":"test","prompt":"hi","stream":true,"max_tokens":30,"seed":3}`
	t.Run("back in time", func(t *testing.T) {
		d := open(t, gatewaytest.Options{Manual: true}, func(s *gateway.Settings) { s.MaxRequests = 1 })
		d.Step(10)
		s := d.stream(textPath, body, "Idempotency-Key", "k")
		s.next()
		s.close()
		d.Await(func(s gatewaytest.State) bool { return s.Steps == 10 })
		d.Step(30)
		// The only place is the request's until its client takes it back.
		var again *stream
		await(t, func() bool {
			again = d.stream(textPath, body, "Idempotency-Key", "k", "Last-Event-ID", s.id)
			return again.resp.StatusCode == 200
		})
		if got := again.text(); !strings.HasSuffix(babble("hi", 3, 30), got) || got == "" {
			t.Errorf("got %q", got)
		}
		if n := len(d.State().Aborts); n != 0 {
			t.Errorf("%d aborts", n)
		}
	})
	t.Run("too late", func(t *testing.T) {
		d := open(t, gatewaytest.Options{Manual: true}, func(s *gateway.Settings) { s.ResumeGrace = 20 * time.Millisecond })
		d.Step(10)
		s := d.stream(textPath, body, "Idempotency-Key", "k")
		s.next()
		s.close()
		d.Await(func(s gatewaytest.State) bool { return len(s.Aborts) == 1 && s.UsedBlocks == 0 })
		// What was aborted for want of a reader runs again when there is one.
		d.Step(30)
		if got := d.stream(textPath, body, "Idempotency-Key", "k", "Last-Event-ID", s.id).text(); !strings.HasSuffix(babble("hi", 3, 30), got) || got == "" {
			t.Errorf("got %q", got)
		}
	})
}

// TestLastEventID refuses what is not the id of an event of the answer.
func TestLastEventID(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	const two = `{"model":"test","prompt":"hi","stream":true,"max_tokens":9,"n":2,"seed":3}`
	for _, c := range []struct{ id, key, body, want string }{
		{"3", "k", two, `Last-Event-ID is \"3\", which is not the id of an event of this answer: it has 2 choices`},
		{"3,x", "k", two, `\"x\" is not a count of at most 9 tokens`},
		{"3,", "k", two, `\"\" is not a count of at most 9 tokens`},
		{"3,10", "k", two, `\"10\" is not a count of at most 9 tokens`},
		{"3,4!+", "k", two, `\"4!+\" is not a count of at most 9 tokens`},
		{"3,-4", "k", two, `\"-4\" is not a count of at most 9 tokens`},
		{"3,4!", "late", two, `Last-Event-ID: choice 1 did not end after 4 tokens`},
		{"3,4", "", two, `Last-Event-ID needs the Idempotency-Key of the request that it goes on with`},
		{"3", "k", `{"model":"test","prompt":"hi"}`, `Last-Event-ID needs stream to be true`},
		{"3", "k", `{"model":"test","prompt":` + strings.ReplaceAll(fmt.Sprintf("%q", slices.Repeat([]string{"a"}, 65)), " ", ",") + `,"n":2,"stream":true}`, `an answer with 130 choices cannot be resumed; the limit is 128`},
	} {
		headers := []string{"Last-Event-ID", c.id}
		if c.key != "" {
			headers = append(headers, "Idempotency-Key", c.key)
		}
		r := d.post(textPath, c.body, headers...)
		// What depends on the output is found out when it is there, maybe after the stream has begun.
		if r.status != 400 && (r.status != 200 || c.key != "late") || !strings.Contains(r.body, c.want) || !strings.Contains(r.body, `"param":"Last-Event-ID"`) {
			t.Errorf("%q: %d %s", c.id, r.status, r.body)
		}
	}
	short := open(t, gatewaytest.Options{Reply: gatewaytest.Say("short")})
	r := short.post(textPath, `{"model":"test","prompt":"hi","stream":true,"max_tokens":9}`, "Idempotency-Key", "k", "Last-Event-ID", "8")
	if r.status != 400 && r.status != 200 || strings.Count(r.body, "data:") > 1 || !strings.Contains(r.body, "Last-Event-ID: choice 0 has 6 tokens, not 8") {
		t.Errorf("beyond the end: %d %s", r.status, r.body)
	}
}

// TestResumeRPC resumes by the id alone, at every place, on another gateway.
func TestResumeRPC(t *testing.T) {
	o := gatewaytest.Options{Workers: 2}
	here := open(t, o)
	there := join(t, here.Cluster, o, "node-2")
	one, two := pb.NewInferenceClient(here.grpc()), pb.NewInferenceClient(there.grpc())
	seed := uint64(7)
	request := func(id string) *pb.GenerateRequest {
		return &pb.GenerateRequest{Model: "test", RequestId: id, Input: &pb.GenerateRequest_Prompt{Prompt: "hi"},
			Sampling: &pb.SamplingParams{MaxTokens: 8, N: 2, Seed: &seed}}
	}
	for cut := range 17 {
		id := fmt.Sprint("g-", cut)
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := one.Generate(ctx, request(id))
		if err != nil {
			t.Fatal(err)
		}
		texts, received := map[int32]string{}, []int32{0, 0}
		for range cut {
			m, err := stream.Recv()
			if err != nil {
				break
			}
			texts[m.Index] += m.Text
			received[m.Index] += int32(len(m.TokenIds))
		}
		await(t, func() bool { return here.State().Admitted == cut+1 })
		cancel()
		resumed, err := two.Resume(t.Context(), &pb.ResumeRequest{RequestId: id, Received: received})
		if err != nil {
			t.Fatal(err)
		}
		rest, last, err := collect(resumed)
		if err != nil {
			t.Fatalf("cut %d: %v", cut, err)
		}
		for i := range int32(2) {
			if got := texts[i] + rest[i]; got != babble("hi", seed+uint64(i), 8) {
				t.Errorf("cut %d, choice %d: %q", cut, i, got)
			}
		}
		if last.GetUsage().GetCompletionTokens() != 16 || last.Usage.PromptTokens != 2 {
			t.Errorf("cut %d: usage %v", cut, last.GetUsage())
		}
		// Generate under the same id replays from the start.
		again, err := two.Generate(t.Context(), request(id))
		if err != nil {
			t.Fatal(err)
		}
		if texts, _, err := collect(again); err != nil || texts[1] != babble("hi", 8, 8) {
			t.Errorf("cut %d, replayed: %v %q", cut, err, texts)
		}
	}
	other := metadata.AppendToOutgoingContext(t.Context(), "quire-tenant", "other")
	for name, c := range map[string]struct {
		ctx  context.Context
		req  *pb.ResumeRequest
		code codes.Code
	}{
		"unknown":        {t.Context(), &pb.ResumeRequest{RequestId: "nobody"}, codes.NotFound},
		"another tenant": {other, &pb.ResumeRequest{RequestId: "g-1"}, codes.NotFound},
		"no id":          {t.Context(), &pb.ResumeRequest{}, codes.InvalidArgument},
		"choices":        {t.Context(), &pb.ResumeRequest{RequestId: "g-1", Received: []int32{1, 2, 3}}, codes.InvalidArgument},
		"count":          {t.Context(), &pb.ResumeRequest{RequestId: "g-1", Received: []int32{9}}, codes.InvalidArgument},
	} {
		stream, err := two.Resume(c.ctx, c.req)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := collect(stream); status.Code(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestKeysBelongToTenants: the same key under two tenants names two requests, and neither can read, go on
// with or end the other's, however tenants and keys are put together.
func TestKeysBelongToTenants(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	const body = `{"model":"test","prompt":"%s","max_tokens":9,"seed":3}`
	for _, who := range [][2]string{{"", "k"}, {"a", "k"}, {"b", "k"}, {"", "a/k"}, {"a", "/k"}, {"", "/a/k"}, {"a", "a/k"}} {
		prompt := "of " + who[0] + " and " + who[1]
		headers := []string{"Idempotency-Key", who[1]}
		if who[0] != "" {
			headers = append(headers, "X-Quire-Tenant", who[0])
		}
		r := d.post(textPath, fmt.Sprintf(body, prompt), headers...)
		if r.status != 200 || decode[chunk](t, r.body).Choices[0].Text != babble(prompt, 3, 9) || decode[chunk](t, r.body).ID != "cmpl-"+who[1] {
			t.Errorf("tenant %q, key %q: %d %s", who[0], who[1], r.status, r.body)
		}
	}
	if n := d.State().Admitted; n != 7 {
		t.Errorf("%d requests were admitted, want 7", n)
	}
}

// TestABodyIsWhatTheClientSent: under one key the same body may come in another order and with other space,
// streamed or whole, and gets the first answer; a body that says something else does not.
func TestABodyIsWhatTheClientSent(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	want := d.post(textPath, `{"model":"test","prompt":"hi","max_tokens":9,"seed":3}`, "Idempotency-Key", "k").body
	for _, same := range []string{
		"{ \"seed\": 3,\n\"max_tokens\": 9, \"prompt\": \"hi\", \"model\": \"test\", \"stop\": null, \"stream\": false }",
	} {
		if r := d.post(textPath, same, "Idempotency-Key", "k"); r.body != want {
			t.Errorf("%s: %d %s, want %s", same, r.status, r.body, want)
		}
	}
	if got := d.stream(textPath, `{"stream":true,"model":"test","prompt":"hi","max_tokens":9,"seed":3}`, "Idempotency-Key", "k").text(); got != babble("hi", 3, 9) {
		t.Errorf("streamed: %q", got)
	}
	for _, other := range []string{
		`{"model":"test","prompt":"hi","max_tokens":8,"seed":3}`,
		`{"model":"test","prompt":"hi ","max_tokens":9,"seed":3}`,
		`{"model":"test","prompt":"hi","max_tokens":9,"seed":3,"user":"x"}`,
	} {
		if r := d.post(textPath, other, "Idempotency-Key", "k"); r.status != 409 {
			t.Errorf("%s: %d %s, want 409", other, r.status, r.body)
		}
	}
	if n := d.State().Admitted; n != 1 {
		t.Errorf("%d requests were admitted, want 1", n)
	}
}

// TestATemplateThatReadsTheClock: a retry whose prompt is rendered to other tokens than the first time gets
// the answer to the first.
func TestATemplateThatReadsTheClock(t *testing.T) {
	dated := func(year int) func(*gateway.Settings) {
		return func(s *gateway.Settings) {
			template, err := chat.New("{{ strftime_now('%Y') }}"+gatewaytest.ChatTemplate, chat.Settings{Now: func() time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }})
			if err != nil {
				t.Fatal(err)
			}
			s.Models[0].Chat = template
		}
	}
	d := open(t, gatewaytest.Options{}, dated(2025))
	next := join(t, d.Cluster, gatewaytest.Options{}, "node-2", dated(2026))
	const body = `{"model":"test","messages":[{"role":"user","content":"hi"}],"max_tokens":9,"seed":3}`
	want := d.post(chatPath, body, "Idempotency-Key", "k").body
	if r := next.post(chatPath, body, "Idempotency-Key", "k"); r.body != want {
		t.Errorf("%d %s, want %s", r.status, r.body, want)
	}
}

// TestWhatNobodyReadsIsAborted: a request that streams to this gateway and that nobody reads here is aborted
// once the leader names it, be it that an abort was lost or that an earlier process left it; one that is read,
// or whose client may still come back, is not.
func TestWhatNobodyReadsIsAborted(t *testing.T) {
	o := gatewaytest.Options{Manual: true}
	clock := func(ahead *atomic.Int64) func(*gateway.Settings) {
		return func(s *gateway.Settings) {
			s.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		}
	}
	var first, second atomic.Int64
	d := open(t, o, clock(&first))
	d.Step(1)
	s := d.stream(textPath, `{"model":"test","prompt":"hi","stream":true,"max_tokens":60,"seed":3}`, "Idempotency-Key", "left")
	s.next()
	first.Store(int64(time.Minute))
	d.TellOwned() // It is read.
	d.quit()
	join(t, d.Cluster, o, "node-1", clock(&second))
	d.TellOwned() // Its client may still come back.
	if n := len(d.State().Aborts); n != 0 {
		t.Fatalf("%d aborts of what is read, or may be again", n)
	}
	second.Store(int64(time.Minute))
	for poll := time.NewTicker(5 * time.Millisecond); len(d.State().Aborts) == 0; <-poll.C {
		d.TellOwned()
	}
	if aborts := fmt.Sprint(d.State().Aborts); !strings.Contains(aborts, "left") {
		t.Errorf("aborted: %v", aborts)
	}
}
