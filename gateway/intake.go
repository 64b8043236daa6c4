package gateway

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
)

// What a client sends costs memory and work before it is a request. Bodies are read in pieces that grow with
// what has arrived, never with what was announced, and all of them together are bounded. A body that has
// arrived takes a place before it is parsed: that, the chat template and the tokenizer cost many times what
// reading does.

// firstPiece is what a body gets before anything of it has come.
const firstPiece = 4 << 10

// bodies counts the bytes of the bodies that are being read and parsed.
type bodies struct {
	most int64
	held atomic.Int64
}

// take takes n bytes, unless there would be too many then.
func (b *bodies) take(n int64) bool {
	if b.held.Add(n) > b.most {
		b.held.Add(-n)
		return false
	}
	return true
}

// errFull is too many bodies at once, errTooLarge one that is above its own limit.
var (
	errFull     = errors.New("too many bodies at once")
	errTooLarge = errors.New("the body is too large")
)

// read reads r to its end, limit bytes at most. What it returns is taken from the bodies until the caller
// gives cap(body) bytes back; after an error nothing is.
func (b *bodies) read(r io.Reader, limit int64) (body []byte, err error) {
	defer func() {
		if err != nil {
			b.held.Add(-int64(cap(body)))
			body = nil
		}
	}()
	for {
		if len(body) == cap(body) {
			size := min(max(firstPiece, 2*cap(body)), int(limit)+1)
			grown := int64(size - cap(body))
			if grown <= 0 {
				return body, errTooLarge
			}
			if !b.take(grown) {
				return body, errFull
			}
			// The allocator's own rounding is not counted.
			body = append(make([]byte, 0, size), body...)[:len(body):size]
		}
		n, err := r.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > limit:
			return body, errTooLarge
		case err == io.EOF:
			return body, nil
		case err != nil:
			return body, err
		}
	}
}

// place takes the first place of a call, or reports that there is none. One that its client comes back to has
// a place.
func (g *Gateway) place(who caller) *apiError {
	if g.lives.lingers(who.key()) {
		g.inUse.Add(1)
		return nil
	}
	return g.acquire(1)
}

// yield gives back what a call has not handed to its answer.
func (g *Gateway) yield(c *call) {
	g.release(c.places)
	c.places = 0
}

// body reads a request's body.
func (g *Gateway) body(w http.ResponseWriter, r *http.Request) ([]byte, *apiError) {
	if r.ContentLength > g.MaxBodyBytes {
		return nil, tooLarge(g.MaxBodyBytes)
	}
	rc := http.NewResponseController(w)
	// Not every ResponseWriter has deadlines; those of net/http's server have.
	_ = rc.SetReadDeadline(time.Now().Add(g.ReadTimeout))
	raw, err := g.bodies.read(r.Body, g.MaxBodyBytes)
	switch {
	case err == nil:
		_ = rc.SetReadDeadline(time.Time{})
		return raw, nil
	case errors.Is(err, errFull):
		return nil, overloaded(time.Second, "the bodies of requests take all of the %d bytes that the gateway has for them", g.MaxBodiesBytes)
	case errors.Is(err, errTooLarge):
		return nil, tooLarge(g.MaxBodyBytes)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &apiError{status: http.StatusRequestTimeout, code: codes.InvalidArgument, kind: typeInvalid, name: "body_incomplete",
			message: "the body did not arrive whole within " + g.ReadTimeout.String()}
	}
	return nil, gone()
}
