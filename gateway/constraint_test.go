package gateway_test

import (
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/quire-serve/quire/gateway/gatewaytest"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestConstraints: what the client asks for reaches the worker, and text and gRPC alike refuse what
// cannot be had.
func TestConstraints(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]*pb.Constraint{}
	d := open(t, gatewaytest.Options{Reply: func(req *pb.Request, _, _ int) int32 {
		mu.Lock()
		defer mu.Unlock()
		asked[req.Id] = req.Sampling.Constraint
		return 'x'
	}})
	ask := func(path, body, format string) *pb.Constraint {
		t.Helper()
		r := d.post(path, `{"model":"test","max_tokens":1,`+body+`,"response_format":`+format+`}`)
		if r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		mu.Lock()
		defer mu.Unlock()
		for id, c := range asked {
			delete(asked, id)
			return c
		}
		return nil
	}
	const chat, text = `"messages":[{"role":"user","content":"hi"}]`, `"prompt":"hi"`
	if c := ask(chatPath, chat, `{"type":"json_object"}`); !c.GetJsonObject() {
		t.Errorf("json_object arrived as %v", c)
	}
	const schema = `{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}`
	if c := ask(textPath, text, `{"type":"json_schema","json_schema":{"name":"x","strict":true,"schema":`+schema+`}}`); c.GetJsonSchema() != schema {
		t.Errorf("json_schema arrived as %v", c)
	}
	if c := ask(chatPath, chat, `{"type":"text"}`); c != nil {
		t.Errorf("text arrived as %v", c)
	}

	// vLLM's words for the same, and for more.
	for _, c := range []struct {
		body string
		want *pb.Constraint
	}{
		{`"guided_regex":"[a-z]+"`, &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: "[a-z]+"}}},
		{`"guided_json":` + schema, &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: schema}}},
		{`"guided_choice":["yes","no.","a|b"]`, &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: `yes|no\.|a\|b`}}},
		{`"structured_outputs":{"json":` + strconv.Quote(schema) + `}`, &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: schema}}},
		{`"structured_outputs":{"json_object":true,"regex":null}`, &pb.Constraint{Kind: &pb.Constraint_JsonObject{JsonObject: true}}},
		{`"structured_outputs":{"choice":["x"],"json_object":false}`, &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: "x"}}},
	} {
		if got := ask(textPath, text+","+c.body, "null"); !proto.Equal(got, c.want) {
			t.Errorf("%s arrived as %v, want %v", c.body, got, c.want)
		}
	}
	for body, param := range map[string]string{
		`"guided_regex":"a("`:                                         "guided_regex",
		`"guided_regex":7`:                                            "guided_regex",
		`"guided_choice":[]`:                                          "guided_choice",
		`"guided_choice":["a",1]`:                                     "guided_choice[1]",
		`"guided_grammar":"root ::= x"`:                               "guided_grammar",
		`"structured_outputs":{"grammar":"root ::= x"}`:               "structured_outputs.grammar",
		`"structured_outputs":{"regex":"a","choice":["a"]}`:           "structured_outputs.choice",
		`"guided_regex":"a","response_format":{"type":"json_object"}`: "guided_regex",
		`"structured_outputs":{"json":7}`:                             "structured_outputs.json",
	} {
		r := d.post(textPath, `{"model":"test","max_tokens":1,`+text+`,`+body+`}`)
		if r.status != 400 || !strings.Contains(r.body, `"param":"`+param+`"`) {
			t.Errorf("%s: %d %s", body, r.status, r.body)
		}
	}

	client := pb.NewInferenceClient(d.grpc())
	generate := func(c *pb.Constraint) error {
		stream, err := client.Generate(t.Context(), &pb.GenerateRequest{Model: "test", Input: &pb.GenerateRequest_Prompt{Prompt: "hi"},
			Sampling: &pb.SamplingParams{MaxTokens: 1, Constraint: c}, RequestId: "g-1"})
		if err != nil {
			return err
		}
		_, _, err = collect(stream)
		return err
	}
	if err := generate(&pb.Constraint{Kind: &pb.Constraint_Regex{Regex: "[a-z]+"}}); err != nil || asked["g-1"].GetRegex() != "[a-z]+" {
		t.Errorf("a regular expression arrived as %v, %v", asked["g-1"], err)
	}
	for _, c := range []*pb.Constraint{{}, {Kind: &pb.Constraint_Regex{Regex: "a("}}, {Kind: &pb.Constraint_JsonObject{}}} {
		err := generate(c)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), "constraint") {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// TestConstraintLimitIsTheClients: a request whose restriction can't be followed any further is the
// client's error on every way that it may be heard of, and nobody repeats it.
func TestConstraintLimitIsTheClients(t *testing.T) {
	const want = `"type":"invalid_request_error","param":null,"code":"constraint_limit"`
	const body = `{"model":"test","prompt":"hi","max_tokens":9,"guided_regex":".*","stream":%v}`
	for _, how := range []string{"whole", "stream", "queued"} {
		d := open(t, gatewaytest.Options{Manual: true})
		answered := make(chan reply)
		text := strings.Replace(body, "%v", strconv.FormatBool(how == "stream"), 1)
		go func() { answered <- d.post(textPath, text, "Idempotency-Key", "wide") }()
		d.Await(func(s gatewaytest.State) bool { return s.Live == 1 })
		if how == "queued" {
			d.EndQueued("wide", pb.FinishReason_FINISH_REASON_INVALID, "more than 2048 ways")
		} else {
			d.End("wide", pb.FinishReason_FINISH_REASON_INVALID, "more than 2048 ways")
		}
		r := <-answered
		wantStatus, wantRetry := 400, "false"
		if how == "stream" && r.status == 200 { // it had begun, which it need not have if it fails at once
			wantStatus, wantRetry = 200, ""
		}
		if r.status != wantStatus || !strings.Contains(r.body, want) || !strings.Contains(r.body, "2048 ways") || r.header.Get("X-Should-Retry") != wantRetry {
			t.Errorf("%s: %d %s, x-should-retry %q", how, r.status, r.body, r.header.Get("X-Should-Retry"))
		}
	}
}
