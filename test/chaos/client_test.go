//go:build linux

package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// manner is what a client does when its stream breaks.
type manner int

const (
	// resumes asks another node for what comes after what it has.
	resumes manner = iota + 1
	// repeats sends the request again under the same key, and reads the answer from its start.
	repeats
	// whole does not stream, and sends the request again under the same key.
	whole
)

func (m manner) String() string { return [...]string{"", "resume", "repeat", "whole"}[m] }

// ask is a request that is sent many times under different keys. It says the same every time.
type ask struct {
	name   string
	manner manner
	// path and body are those of HTTP; without a path it is generate over gRPC.
	path     string
	body     map[string]any
	generate *pb.GenerateRequest
	choices  int
	// tenant, if set, may be refused for its quota: that is an answer then.
	tenant string
}

// front is a gateway as clients reach it.
type front struct {
	name string
	http string
	// httpAddress and grpcAddress are for clients with connections of their own.
	httpAddress, grpcAddress string
	conn                     *grpc.ClientConn
	web                      *http.Client
}

// A machine that is gone without a word is noticed by TCP's probes, as a careful client has them.
var dialer = net.Dialer{Timeout: time.Second, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}}

const (
	// idle is how long a client waits for the next event before it looks elsewhere.
	idle = 12 * time.Second
	// patience is how long a client tries without any news before the request has failed.
	patience = 60 * time.Second
	// pauses between attempts: the first, doubling up to the second. A server's Retry-After counts up
	// to the second, too.
	firstPause, longestPause = 20 * time.Millisecond, 500 * time.Millisecond
)

func newFront(name, httpAddress, grpcAddress string) (*front, error) {
	conn, err := grpc.NewClient("passthrough:///"+grpcAddress,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second, Backoff: backoff.Config{
			BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, MaxDelay: 500 * time.Millisecond,
		}}))
	if err != nil {
		return nil, err
	}
	return &front{name: name, http: "http://" + httpAddress, httpAddress: httpAddress, grpcAddress: grpcAddress, conn: conn, web: &http.Client{
		Transport: &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: 64},
	}}, nil
}

// session is one client with one request.
type session struct {
	ask *ask
	id  string
	got answer
	// partial is what attempts gave that were begun anew.
	partial []answer
	last    string // Last-Event-ID
	// again: the output is not kept, so that the answer is read from its start.
	again  bool
	record *record
	beat   func()
}

// record is what a session leaves behind.
type record struct {
	ask      string
	id       string
	begin    time.Time
	end      time.Time
	first    time.Time // first news
	news     time.Time // newest
	have     int
	gaps     []gap
	attempts []time.Time
	notes    []string
	failure  string
	refused  bool
	diff     difference
}

// gap is the time between two news of a stream; short ones are not kept.
type gap struct{ from, to time.Time }

const leastGap = 10 * time.Millisecond

// heard notes that the client now has so many tokens or bytes.
func (r *record) heard(have int) {
	if have <= r.have {
		return // a repetition
	}
	now := time.Now()
	if r.first.IsZero() {
		r.first = now
	} else if now.Sub(r.news) >= leastGap {
		r.gaps = append(r.gaps, gap{r.news, now})
	}
	r.have, r.news = have, now
}

// refusal is an answer that tells the client to give up.
type refusal struct{ error }

// pause is an answer that tells the client to come back after a time.
type pause struct {
	error
	after time.Duration
}

// run sends the request, beginning at a node, until the answer is there or will not come.
func (s *session) run(ctx context.Context, fronts []*front, at int) {
	s.got.choices = make([]choice, s.ask.choices)
	wait := firstPause
	since := time.Now()
	for ; ; at++ {
		f := fronts[at%len(fronts)]
		s.record.attempts = append(s.record.attempts, time.Now())
		before := s.record.have
		err := s.attempt(ctx, f)
		var no refusal
		switch {
		case err == nil:
			return
		case s.ask.tenant != "" && status.Code(err) == codes.ResourceExhausted:
			s.record.refused = true
			return
		case ctx.Err() != nil:
			s.record.failure = "the run was over"
			return
		case errors.As(err, &no):
			s.record.failure = fmt.Sprintf("%s answered: %v", f.name, err)
			return
		}
		s.record.notes = append(s.record.notes, fmt.Sprintf("%s %s: %v", time.Now().Format(time.StampMilli), f.name, err))
		if s.record.have > before {
			since, wait = time.Now(), firstPause
		}
		if time.Since(since) > patience {
			s.record.failure = fmt.Sprintf("no news for %v: %v", patience, err)
			return
		}
		var later pause
		rest := wait
		if errors.As(err, &later) {
			rest = max(rest, min(later.after, longestPause))
		}
		wait = min(2*wait, longestPause)
		select {
		case <-time.After(rest):
		case <-ctx.Done():
		}
	}
}

// attempt asks one node. A nil error is a complete answer.
func (s *session) attempt(ctx context.Context, f *front) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(idle, func() { cancel(fmt.Errorf("silent for %v", idle)) })
	defer timer.Stop()
	s.beat = func() { timer.Reset(idle) }
	if (s.ask.manner != resumes || s.again) && s.record.have > 0 {
		s.partial = append(s.partial, s.got)
		s.got = answer{choices: make([]choice, s.ask.choices)}
	}
	var err error
	if s.ask.path == "" {
		err = s.overGRPC(ctx, f)
	} else {
		err = s.overHTTP(ctx, f)
	}
	if err != nil && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	return err
}

// size is how much of the answer is there.
func (s *session) size() (n int) {
	for _, c := range s.got.choices {
		n += max(len(c.tokens), len(c.text))
	}
	return n
}

func (s *session) overHTTP(ctx context.Context, f *front) error {
	body, err := json.Marshal(s.ask.body)
	if err != nil {
		return refusal{err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.http+s.ask.path, bytes.NewReader(body))
	if err != nil {
		return refusal{err}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", s.id)
	if s.ask.manner == resumes && s.last != "" {
		req.Header.Set("Last-Event-ID", s.last)
	}
	resp, err := f.web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refused(resp)
	}
	if s.ask.manner == whole {
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		return s.take(text)
	}
	return s.events(resp.Body)
}

// refused reads an error's status and words.
func refused(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	err := fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		var ms int
		_, _ = fmt.Sscan(resp.Header.Get("Retry-After-Ms"), &ms)
		return pause{err, time.Duration(ms) * time.Millisecond}
	default:
		return refusal{err}
	}
}

// events reads server-sent events to [DONE].
func (s *session) events(body io.Reader) error {
	lines := bufio.NewReaderSize(body, 64<<10)
	id := ""
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("the stream broke: %w", err)
		}
		s.beat()
		line = strings.TrimRight(line, "\r\n")
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "" && id != "":
			s.last, id = id, "" // The event is complete.
		case field == "id":
			id = value
		case field == "data" && value == "[DONE]":
			return nil
		case field == "data":
			if err := s.take([]byte(value)); err != nil {
				return err
			}
		}
	}
}

// take adds a chunk, or a whole body.
func (s *session) take(text []byte) error {
	var chunk struct {
		Error *struct {
			Message string
			Code    string
		}
		Choices []struct {
			Index   int
			Text    string
			Delta   struct{ Content string }
			Message struct{ Content string }
			Finish  string `json:"finish_reason"`
			Probs   *struct {
				Content []json.RawMessage // chat
				Tokens  []string          // completions
				Values  []json.RawMessage `json:"token_logprobs"`
				Top     []json.RawMessage `json:"top_logprobs"`
				Offset  []int             `json:"text_offset"`
			} `json:"logprobs"`
		}
		Usage *struct {
			Prompt     int `json:"prompt_tokens"`
			Completion int `json:"completion_tokens"`
		}
	}
	if err := json.Unmarshal(text, &chunk); err != nil {
		return refusal{fmt.Errorf("chunk %q: %w", clip(string(text), 200), err)}
	}
	if e := chunk.Error; e != nil {
		err := fmt.Errorf("error event %s: %s", e.Code, e.Message)
		if e.Code == "unavailable" || e.Code == "request_moved" {
			return err
		}
		return refusal{err}
	}
	for _, c := range chunk.Choices {
		if c.Index < 0 || c.Index >= len(s.got.choices) {
			return refusal{fmt.Errorf("choice %d of %d", c.Index, len(s.got.choices))}
		}
		to := &s.got.choices[c.Index]
		if to.finish != "" {
			return refusal{fmt.Errorf("choice %d goes on after its finish: %s", c.Index, clip(string(text), 200))}
		}
		to.text += c.Text + c.Delta.Content + c.Message.Content
		to.finish = c.Finish
		if p := c.Probs; p != nil {
			for _, one := range p.Content {
				to.logprobs = append(to.logprobs, string(one))
			}
			for i := range p.Tokens {
				to.logprobs = append(to.logprobs, fmt.Sprint(p.Tokens[i], string(p.Values[i]), string(p.Top[i]), p.Offset[i]))
			}
		}
	}
	if chunk.Usage != nil {
		s.got.prompt, s.got.completion = chunk.Usage.Prompt, chunk.Usage.Completion
	}
	s.record.heard(s.size())
	return nil
}

func (s *session) overGRPC(ctx context.Context, f *front) error {
	client := pb.NewInferenceClient(f.conn)
	var stream grpc.ServerStreamingClient[pb.GenerateResponse]
	var err error
	ended := make([]bool, len(s.got.choices)) // Resume says so again.
	resuming := s.ask.manner == resumes && s.record.have > 0 && !s.again
	if resuming {
		r := &pb.ResumeRequest{RequestId: s.id}
		for i, c := range s.got.choices {
			r.Received = append(r.Received, int32(len(c.tokens)))
			ended[i] = c.finish != ""
		}
		stream, err = client.Resume(ctx, r)
	} else {
		if s.ask.tenant != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "quire-tenant", s.ask.tenant)
		}
		r := &pb.GenerateRequest{Model: s.ask.generate.Model, Input: s.ask.generate.Input, Sampling: s.ask.generate.Sampling, RequestId: s.id}
		stream, err = client.Generate(ctx, r)
	}
	for err == nil {
		var m *pb.GenerateResponse
		if m, err = stream.Recv(); err == nil {
			s.beat()
			err = s.hear(m, ended)
		}
	}
	code := status.Code(err)
	switch {
	case errors.Is(err, io.EOF):
		if s.got.completion == 0 {
			return errors.New("the stream ended without usage")
		}
		return nil
	case code == codes.NotFound && resuming:
		s.again = true
		return err
	case code == codes.Unavailable, code == codes.ResourceExhausted, code == codes.Canceled && ctx.Err() != nil:
		return err
	default:
		return refusal{err}
	}
}

// hear adds a message.
func (s *session) hear(m *pb.GenerateResponse, ended []bool) error {
	if u := m.GetUsage(); u != nil {
		s.got.prompt, s.got.completion = int(u.GetPromptTokens()), int(u.GetCompletionTokens())
	}
	i := int(m.GetIndex())
	if i < 0 || i >= len(s.got.choices) {
		return refusal{fmt.Errorf("choice %d of %d", i, len(s.got.choices))}
	}
	if ended[i] {
		return nil
	}
	to := &s.got.choices[i]
	if to.finish != "" && len(m.GetTokenIds()) > 0 {
		return refusal{fmt.Errorf("choice %d goes on after its finish: %v", i, m)}
	}
	to.text += m.GetText()
	to.tokens = append(to.tokens, m.GetTokenIds()...)
	for _, p := range m.GetLogprobs() {
		entry := fmt.Sprint(p.GetChosen().GetTokenId(), p.GetChosen().GetLogprob())
		for _, t := range p.GetTop() {
			entry += fmt.Sprint(" ", t.GetTokenId(), t.GetLogprob())
		}
		to.logprobs = append(to.logprobs, entry)
	}
	if m.GetFinishReason() != 0 {
		to.finish = m.GetFinishReason().String() + " " + m.GetStopReason()
	}
	s.record.heard(s.size())
	return nil
}
