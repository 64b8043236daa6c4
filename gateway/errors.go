package gateway

import (
	"cmp"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Error types of the OpenAI API.
const (
	typeInvalid = "invalid_request_error"
	typeLimit   = "rate_limit_error"
	typeServer  = "server_error"
)

// apiError is one refusal, for every surface: OpenAI's error object, its HTTP status, and the gRPC
// code.
type apiError struct {
	status  int
	code    codes.Code
	kind    string
	name    string // OpenAI's "code"; empty is null
	param   string // empty is null
	message string
	// retryAfter, if positive, tells the client when to come back.
	retryAfter time.Duration
	// noRetry: the same request ends the same way again, although its status says otherwise.
	noRetry bool
	// reason, if set, says in a word why a request was not taken: what the leader calls it.
	reason string
}

func (e *apiError) Error() string { return e.message }

// GRPCStatus lets the error be returned from a gRPC method as it is.
func (e *apiError) GRPCStatus() *status.Status {
	s := status.New(e.code, e.message)
	if e.retryAfter > 0 {
		if d, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(e.retryAfter)}); err == nil {
			return d
		}
	}
	if e.param != "" {
		violation := &errdetails.BadRequest_FieldViolation{Field: e.param, Description: e.message}
		if d, err := s.WithDetails(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{violation}}); err == nil {
			return d
		}
	}
	return s
}

// invalid refuses a request for the value of one field.
func invalid(param, format string, args ...any) *apiError {
	return &apiError{
		status: http.StatusBadRequest, code: codes.InvalidArgument, kind: typeInvalid,
		name: "invalid_value", param: param, message: fmt.Sprintf(format, args...),
	}
}

// malformed refuses a body that is not a JSON object.
func malformed(format string, args ...any) *apiError {
	e := invalid("", format, args...)
	e.name = "invalid_json"
	return e
}

// unsupported refuses a parameter that would change the answer and that we do not implement.
func unsupported(param, format string, args ...any) *apiError {
	e := invalid(param, format, args...)
	e.name = "unsupported_parameter"
	return e
}

func unknownModel(id string) *apiError {
	return &apiError{
		status: http.StatusNotFound, code: codes.NotFound, kind: typeInvalid,
		name: "model_not_found", param: "model", message: fmt.Sprintf("model %q is not served here; GET /v1/models lists those that are", clip(id, 128)),
	}
}

func overloaded(after time.Duration, format string, args ...any) *apiError {
	return &apiError{
		status: http.StatusTooManyRequests, code: codes.ResourceExhausted, kind: typeLimit,
		name: "rate_limit_exceeded", message: fmt.Sprintf(format, args...), retryAfter: after,
	}
}

func unavailable(format string, args ...any) *apiError {
	return &apiError{
		status: http.StatusServiceUnavailable, code: codes.Unavailable, kind: typeServer,
		name: "unavailable", message: fmt.Sprintf(format, args...), retryAfter: time.Second,
	}
}

func shuttingDown() *apiError {
	e := unavailable("this node is shutting down; ask another one")
	e.name = "shutting_down"
	return e
}

// interruption ends lives whose clients are told to go on elsewhere; interrupted is what those are told.
var interruption = shuttingDown()

func interrupted(id string) *apiError {
	e := shuttingDown()
	e.message = fmt.Sprintf("this node is shutting down, and the request runs on: ask again under Idempotency-Key %q (gRPC: request_id), at another node or when this one is back; a stream goes on after its Last-Event-ID", id)
	return e
}

// tooSlow ends the call of a client that does not read.
func tooSlow(timeout time.Duration) *apiError {
	e := unavailable("nothing was read for %v; a named request can be resumed", timeout)
	e.name = "client_too_slow"
	return e
}

func internal(format string, args ...any) *apiError {
	return &apiError{
		status: http.StatusInternalServerError, code: codes.Internal, kind: typeServer,
		name: "internal_error", message: fmt.Sprintf(format, args...),
	}
}

func conflict(name, format string, args ...any) *apiError {
	return &apiError{
		status: http.StatusConflict, code: codes.AlreadyExists, kind: typeInvalid,
		name: name, message: fmt.Sprintf(format, args...), noRetry: true,
	}
}

// failed ends a request that could not be completed: by no fault of its own, for what it asks, or because
// it was not started in its time.
func failed(reason pb.FinishReason, message string) *apiError {
	switch reason {
	case pb.FinishReason_FINISH_REASON_DEADLINE:
		return lateFor(message)
	case pb.FinishReason_FINISH_REASON_INVALID:
		e := invalid("", "the output's restriction can't be followed any further: %s", message)
		e.name, e.noRetry = "constraint_limit", true
		return e
	case pb.FinishReason_FINISH_REASON_UNSERVED:
		e := unavailable("%s", message)
		e.reason = "no_worker" // as those are told that come later
		return e
	}
	return internal("generation failed: %s", message)
}

// statusGone is what the metrics and the log call the end of a request whose client has hung up; nobody is
// there to read it.
const statusGone = 499

func gone() *apiError {
	return &apiError{status: statusGone, code: codes.Canceled, kind: typeInvalid, name: "client_closed_request", message: reasonGone, noRetry: true}
}

func tooLarge(limit int64) *apiError {
	return &apiError{status: http.StatusRequestEntityTooLarge, code: codes.InvalidArgument, kind: typeInvalid, name: "request_too_large",
		message: fmt.Sprintf("the body is larger than %d bytes", limit)}
}

// cancelled ends a request that someone else than its client cancelled.
func cancelled(reason string) *apiError {
	message := "the request was cancelled"
	if reason != "" {
		message += ": " + reason
	}
	return &apiError{
		status: http.StatusConflict, code: codes.Aborted, kind: typeServer,
		name: "request_cancelled", message: message, noRetry: true,
	}
}

// moved ends the readers of a request that goes on at another gateway: its client is there, or finds
// it there when it asks again under the same id.
func moved() *apiError {
	e := unavailable("the request goes on at another gateway; ask again under the same id")
	e.name = "request_moved"
	return e
}

// forgotten is about a request that is known and of whose output nothing is left.
func forgotten(id string) *apiError {
	return &apiError{
		status: http.StatusNotFound, code: codes.NotFound, kind: typeInvalid, name: "request_not_found",
		message: fmt.Sprintf("the output of request %q is not kept (any more); send the request again", id),
	}
}

// lateFor is a request that was not started in its time. The same time would be too short again.
func lateFor(message string) *apiError {
	return &apiError{
		status: http.StatusGatewayTimeout, code: codes.DeadlineExceeded, kind: typeServer, name: "deadline_exceeded",
		message: message, noRetry: true, reason: "deadline",
	}
}

// fromControl translates the leader's refusal of a Submit.
func fromControl(err error) *apiError {
	s := status.Convert(err)
	after, reason := time.Duration(0), reasonOf(err)
	for _, d := range s.Details() {
		if d, ok := d.(*errdetails.RetryInfo); ok {
			after = d.GetRetryDelay().AsDuration()
		}
	}
	switch s.Code() {
	case codes.ResourceExhausted:
		if after <= 0 {
			after = time.Second
		}
		e := overloaded(after, "%s", s.Message())
		e.reason = cmp.Or(reason, "overloaded")
		return e
	case codes.DeadlineExceeded:
		e := lateFor(s.Message())
		e.reason = cmp.Or(reason, e.reason)
		return e
	case codes.InvalidArgument, codes.OutOfRange:
		return invalid("", "%s", s.Message())
	case codes.NotFound:
		e := invalid("model", "%s", s.Message())
		e.status, e.code, e.name = http.StatusNotFound, codes.NotFound, "model_not_found"
		return e
	case codes.AlreadyExists:
		return conflict("request_id_in_use", "%s", s.Message())
	case codes.Unavailable, codes.FailedPrecondition, codes.Aborted:
		e := unavailable("the control plane does not answer: %s", s.Message())
		if reason != "" {
			e = unavailable("%s", s.Message())
			e.reason = reason
		}
		e.retryAfter = cmp.Or(after, e.retryAfter)
		return e
	default:
		return internal("admission failed: %s", s.Message())
	}
}

// reasonOf is the reason that a node gave for its refusal, or "".
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if d, ok := d.(*errdetails.ErrorInfo); ok {
			return d.GetReason()
		}
	}
	return ""
}

// appendBody writes {"error":{…}} with all four keys, as OpenAI's clients require.
func (e *apiError) appendBody(b []byte) []byte {
	b = append(b, `{"error":{"message":`...)
	b = appendString(b, e.message)
	b = append(b, `,"type":`...)
	b = appendString(b, e.kind)
	b = append(b, `,"param":`...)
	b = appendNullable(b, e.param)
	b = append(b, `,"code":`...)
	b = appendNullable(b, e.name)
	return append(b, "}}"...)
}

func appendNullable(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	return appendString(b, s)
}

// retryable reports whether the same request may have another end later on.
func (e *apiError) retryable() bool {
	return !e.noRetry && (e.retryAfter > 0 || e.status == http.StatusRequestTimeout || e.status >= http.StatusInternalServerError)
}

// write answers with the error. Clients of OpenAI retry 408, 409, 429 and 5xx unless x-should-retry
// says otherwise, and prefer retry-after-ms to Retry-After.
func (e *apiError) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Del("Cache-Control")
	if e.reason != "" {
		h.Set("X-Quire-Reason", e.reason)
	}
	if e.retryAfter > 0 {
		seconds := (e.retryAfter + time.Second - 1) / time.Second
		h.Set("Retry-After", strconv.FormatInt(int64(seconds), 10))
		h.Set("Retry-After-Ms", strconv.FormatInt(e.retryAfter.Milliseconds(), 10))
	}
	h.Set("X-Should-Retry", strconv.FormatBool(e.retryable()))
	if e.status == statusGone {
		return // to nobody
	}
	w.WriteHeader(e.status)
	// A failed write means that the client has gone: there is nobody left to tell.
	_, _ = w.Write(append(e.appendBody(nil), '\n'))
}

// clip shortens s to at most n bytes for use in a message.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
