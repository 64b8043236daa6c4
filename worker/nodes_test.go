package worker

import (
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSilentNodesAreLeftOut: a node that did not answer is not tried while others are there, even if one
// of them says that it leads.
func TestSilentNodesAreLeftOut(t *testing.T) {
	now := time.Unix(1000, 0)
	n := newNodes([]string{"a", "b", "c"}, nil)
	take := func(k int) (got []string) {
		for range k {
			got = append(got, n.next(now))
		}
		return got
	}
	if got := take(4); !slices.Equal(got, []string{"a", "b", "c", "a"}) {
		t.Errorf("tried %v", got)
	}
	if !n.suggest("c", now) || n.next(now) != "c" {
		t.Error("the node that leads is not next")
	}
	n.heard("b", false, now)
	if n.suggest("b", now) {
		t.Error("a silent node is suggested")
	}
	if got := take(4); slices.Contains(got, "b") || !slices.Contains(got, "a") || !slices.Contains(got, "c") {
		t.Errorf("tried %v while b is silent", got)
	}
	for _, address := range n.list {
		n.heard(address, false, now)
	}
	if got := take(3); !slices.Contains(got, "a") || !slices.Contains(got, "b") || !slices.Contains(got, "c") {
		t.Errorf("tried %v while all are silent", got)
	}
	n.heard("b", true, now)
	if got := take(2); !slices.Equal(got, []string{"b", "b"}) {
		t.Errorf("tried %v once b answered", got)
	}
	now = now.Add(silentFor)
	if !n.suggest("a", now) {
		t.Error("silence lasts for ever")
	}
}

// TestNoSessionIsSaidOnce: a worker that finds no leader, for one reason or for several in turn, says each
// reason once, however often it tries.
func TestNoSessionIsSaidOnce(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tries := make(chan struct{})
	go func() {
		for range 20 {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
		close(tries)
	}()
	var said lines
	start(t, func(s *Settings) { s.Logger = slog.New(slog.NewTextHandler(&said, nil)) }, l.Addr().String(), web.Listener.Addr().String())
	<-tries
	reasons := map[string]int{}
	for line := range strings.Lines(said.text()) {
		if _, why, ok := strings.Cut(line, "no session with the leader"); ok {
			reasons[why]++
		}
	}
	text := said.text()
	for why, n := range reasons {
		if n > 1 {
			t.Errorf("said %d times: %s", n, why)
		}
	}
	// A connection that is closed at once fails in one of two ways.
	if len(reasons) < 2 || len(reasons) > 3 || !strings.Contains(text, "an HTTP server answers there") {
		t.Errorf("after 20 tries the log says\n%s", text)
	}
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
