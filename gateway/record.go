package gateway

import (
	"context"
	"log/slog"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// record is what the log says of one call, in one line at its end: who asked for what, how long it took and
// how it ended; never what was asked or answered. Of a call on behalf of nobody there is none, and its methods
// do nothing.
type record struct {
	began   time.Time
	who     caller
	call    *call
	answer  *answer
	failure *apiError
}

type recordKey struct{}

func withRecord(ctx context.Context, r *record) context.Context {
	return context.WithValue(ctx, recordKey{}, r)
}

func recordOf(ctx context.Context) *record {
	r, _ := ctx.Value(recordKey{}).(*record)
	return r
}

func (r *record) identify(who caller) {
	if r != nil {
		r.who = who
	}
}

func (r *record) running(a *answer) {
	if r != nil {
		r.call, r.answer = a.call, a
	}
}

func (r *record) fail(e *apiError) {
	if r != nil {
		r.failure = e
	}
}

// finish says how the call ended: with the first choice's reason, or with an error's name.
func (r *record) finish() string {
	switch {
	case r.failure != nil:
		return r.failure.name
	case r.answer == nil:
		return ""
	}
	l := r.answer.lives[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.choices[0].finish {
	case pb.FinishReason_FINISH_REASON_STOP:
		return "stop"
	case pb.FinishReason_FINISH_REASON_LENGTH:
		return "length"
	}
	return ""
}

// attrs are the fields of the line.
func (r *record) attrs(now time.Time) []slog.Attr {
	list := []slog.Attr{slog.String("id", r.who.id), slog.String("tenant", r.who.tenant)}
	if r.call != nil {
		u := r.answer.usage()
		list = append(list, slog.String("model", r.call.model.ID), slog.Bool("stream", !r.call.whole),
			slog.Int("prompt_tokens", int(u.PromptTokens)), slog.Int("cached_tokens", int(u.CachedTokens)), slog.Int("output_tokens", int(u.CompletionTokens)))
		l := r.answer.lives[0]
		l.mu.Lock()
		if !l.firstToken.IsZero() {
			first := l.firstToken.Sub(r.began)
			list = append(list, slog.Int64("queue_ms", max(first-l.prefilled, 0).Milliseconds()), slog.Int64("ttft_ms", max(first, 0).Milliseconds()))
		}
		l.mu.Unlock()
	}
	return append(list, slog.Int64("total_ms", now.Sub(r.began).Milliseconds()), slog.String("finish", r.finish()))
}

// logRequest writes a call's line. status is HTTP's or gRPC's word for how it went.
func (g *Gateway) logRequest(ctx context.Context, r *record, method, path string, status slog.Attr) {
	if !g.Log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	attrs := append([]slog.Attr{slog.String("method", method), slog.String("path", path), status}, r.attrs(g.Now())...)
	g.Log.LogAttrs(ctx, slog.LevelInfo, "request", attrs...)
}
