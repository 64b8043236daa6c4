package gateway

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestWhatARetryHelps goes over every error that there is: clients are told not to repeat what would end the
// same way again, and when to come back with what would not; over gRPC by RetryInfo.
func TestWhatARetryHelps(t *testing.T) {
	leader := func(code codes.Code, details ...protoadapt.MessageV1) *apiError {
		s, err := status.New(code, "the leader's words").WithDetails(details...)
		if err != nil {
			s = status.New(code, "the leader's words")
		}
		return fromControl(s.Err())
	}
	wait := &errdetails.RetryInfo{RetryDelay: durationpb.New(5 * time.Second)}
	noWorker := &errdetails.ErrorInfo{Reason: "no_worker"}
	for name, c := range map[string]struct {
		e      *apiError
		status int
		retry  bool
		after  string
	}{
		"bad value":               {invalid("n", "n"), 400, false, ""},
		"bad JSON":                {malformed("x"), 400, false, ""},
		"unsupported":             {unsupported("x", "x"), 400, false, ""},
		"no such model":           {unknownModel("x"), 404, false, ""},
		"no such request":         {forgotten("x"), 404, false, ""},
		"too large":               {tooLarge(8), 413, false, ""},
		"another body":            {conflict("request_id_in_use", "x"), 409, false, ""},
		"cancelled":               {cancelled("x"), 409, false, ""},
		"moved":                   {moved(), 503, true, "1"},
		"no place":                {overloaded(1500*time.Millisecond, "x"), 429, true, "2"},
		"unavailable":             {unavailable("x"), 503, true, "1"},
		"shutting down":           {shuttingDown(), 503, true, "1"},
		"interrupted":             {interrupted("x"), 503, true, "1"},
		"too slow":                {tooSlow(time.Second), 503, true, "1"},
		"internal":                {internal("x"), 500, true, ""},
		"failed":                  {failed(pb.FinishReason_FINISH_REASON_ERROR, "x"), 500, true, ""},
		"late":                    {failed(pb.FinishReason_FINISH_REASON_DEADLINE, "x"), 504, false, ""},
		"constraint":              {failed(pb.FinishReason_FINISH_REASON_INVALID, "x"), 400, false, ""},
		"unserved":                {failed(pb.FinishReason_FINISH_REASON_UNSERVED, "x"), 503, true, "1"},
		"leader: queue is full":   {leader(codes.ResourceExhausted, wait), 429, true, "5"},
		"leader: full, no word":   {leader(codes.ResourceExhausted), 429, true, "1"},
		"leader: late":            {leader(codes.DeadlineExceeded), 504, false, ""},
		"leader: bad value":       {leader(codes.InvalidArgument), 400, false, ""},
		"leader: out of range":    {leader(codes.OutOfRange), 400, false, ""},
		"leader: no such model":   {leader(codes.NotFound), 404, false, ""},
		"leader: another body":    {leader(codes.AlreadyExists), 409, false, ""},
		"leader: no leader":       {leader(codes.Unavailable), 503, true, "1"},
		"leader: not the leader":  {leader(codes.FailedPrecondition), 503, true, "1"},
		"leader: no worker":       {leader(codes.Unavailable, wait, noWorker), 503, true, "5"},
		"leader: anything else":   {leader(codes.Internal), 500, true, ""},
		"leader: does not answer": {fromControl(errClosed), 503, true, "1"},
	} {
		w := httptest.NewRecorder()
		c.e.write(w)
		h := w.Header()
		if w.Code != c.status || h.Get("X-Should-Retry") != strconv.FormatBool(c.retry) || h.Get("Retry-After") != c.after {
			t.Errorf("%s: %d, x-should-retry %q, retry-after %q; want %d, %v, %q", name, w.Code, h.Get("X-Should-Retry"), h.Get("Retry-After"), c.status, c.retry, c.after)
		}
		if (w.Code == http.StatusTooManyRequests || w.Code == http.StatusServiceUnavailable) != (h.Get("Retry-After") != "") {
			t.Errorf("%s: %d with retry-after %q", name, w.Code, h.Get("Retry-After"))
		}
		told := false
		for _, d := range c.e.GRPCStatus().Details() {
			_, ok := d.(*errdetails.RetryInfo)
			told = told || ok
		}
		if told != (c.after != "") {
			t.Errorf("%s: RetryInfo is %v", name, told)
		}
	}
}
