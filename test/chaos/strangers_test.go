//go:build linux

package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const (
	// leavePause is between two clients that leave, unreadPause between two that read nothing.
	leavePause, unreadPause = 700 * time.Millisecond, 4 * time.Second
	// unreadOpen is how many of these stay connected; the oldest goes then.
	unreadOpen = 8
)

// strangers are clients that do not care for their answers: some name a request, read a little and never
// come back, some stay connected and read nothing. Nobody checks what they get. But all of their requests
// must end, what these held must be free, and others must not suffer.
type strangers struct {
	mu           sync.Mutex
	left, unread int
	open         []io.Closer
}

// start keeps strangers coming. Those that read nothing stay connected until close.
func (s *strangers) start(ctx context.Context, l *load, seed uint64) (finish func()) {
	stop := make(chan struct{})
	var done sync.WaitGroup
	every := func(pause time.Duration, stream uint64, f func(front *front, random *rand.Rand)) {
		random := rand.New(rand.NewPCG(seed, stream))
		done.Go(func() {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					f(l.fronts[random.IntN(len(l.fronts))], random)
				}
			}
		})
	}
	lengths := sizes[l.model].tokens
	longest := lengths[len(lengths)-1]
	every(leavePause, 2000, func(f *front, random *rand.Rand) {
		if s.leave(ctx, f, l.name(), l.model, longest, random.IntN(2) == 0) {
			s.mu.Lock()
			s.left++
			s.mu.Unlock()
		}
	})
	every(unreadPause, 2001, func(f *front, random *rand.Rand) {
		open := s.overHTTP
		if random.IntN(2) == 0 {
			open = s.overGRPC
		}
		conn := open(ctx, f, l.name(), l.model, longest)
		if conn == nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unread++
		if s.open = append(s.open, conn); len(s.open) > unreadOpen {
			s.open[0].Close()
			s.open = s.open[1:]
		}
	})
	return func() {
		close(stop)
		done.Wait()
	}
}

// count says in a line how many there were.
func (s *strangers) count() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%d clients left and did not come back, %d read nothing", s.left, s.unread)
}

func (s *strangers) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		c.Close()
	}
	s.open = nil
}

// leave begins a named request, reads a little of its stream and breaks it. It reports whether there was
// something to read.
func (s *strangers) leave(ctx context.Context, f *front, id, model string, tokens int, web bool) bool {
	ctx, cancel := context.WithTimeout(ctx, idle)
	defer cancel()
	if !web {
		stream, err := pb.NewInferenceClient(f.conn).Generate(ctx, direct(id, model, tokens))
		if err == nil {
			_, err = stream.Recv()
		}
		return err == nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.http+"/v1/completions", bytes.NewReader(completion(model, tokens)))
	if err != nil {
		return false
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", id)
	resp, err := f.web.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = bufio.NewReader(resp.Body).ReadString('\n')
	return err == nil && resp.StatusCode == http.StatusOK
}

// overHTTP sends a request on a connection with small buffers and reads nothing; nil if that fails.
func (s *strangers) overHTTP(ctx context.Context, f *front, id, model string, tokens int) io.Closer {
	conn, err := dialer.DialContext(ctx, "tcp", f.httpAddress)
	if err != nil {
		return nil
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(4096)
	}
	body := completion(model, tokens)
	_, err = fmt.Fprintf(conn, "POST /v1/completions HTTP/1.1\r\nHost: chaos\r\nContent-Type: application/json\r\nIdempotency-Key: %s\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body)
	if err != nil {
		conn.Close()
		return nil
	}
	return conn
}

// overGRPC does the same; HTTP/2 lets the server send 64 KiB.
func (s *strangers) overGRPC(ctx context.Context, f *front, id, model string, tokens int) io.Closer {
	conn, err := grpc.NewClient("passthrough:///"+f.grpcAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil
	}
	if _, err := pb.NewInferenceClient(conn).Generate(ctx, direct(id, model, tokens)); err != nil {
		conn.Close()
		return nil
	}
	return conn
}

// completion asks for much text, with what makes each token's event large.
func completion(model string, tokens int) []byte {
	body, err := json.Marshal(map[string]any{
		"model": model, "prompt": strings.Repeat("so ", 8), "max_tokens": tokens, "ignore_eos": true, "stream": true, "logprobs": 5,
	})
	if err != nil {
		panic(err) // of constants
	}
	return body
}

func direct(id, model string, tokens int) *pb.GenerateRequest {
	most := int32(5)
	return &pb.GenerateRequest{Model: model, RequestId: id, Input: &pb.GenerateRequest_Prompt{Prompt: "so so"},
		Sampling: &pb.SamplingParams{MaxTokens: int32(tokens), IgnoreEos: true, Logprobs: &most}}
}
