package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quire-serve/quire/trust"
)

// load sends short requests to the nodes in turn until stop is called. Where a connection fails it
// tries the next node under the same key, as clients' libraries do; anything else that goes wrong is
// a failure.
type load struct {
	nodes   *nodes
	stopped chan struct{}
	clients sync.WaitGroup
	// requests were begun, served ones answered; again counts connections that failed.
	requests, served, again atomic.Int64
	answer                  atomic.Pointer[string]
}

func startLoad(c *nodes, clients int) *load {
	l := &load{nodes: c, stopped: make(chan struct{})}
	for i := range clients {
		l.clients.Go(func() {
			for n := i; ; n++ {
				select {
				case <-l.stopped:
					return
				default:
					l.one(n)
				}
			}
		})
	}
	return l
}

func (l *load) one(n int) {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	body := `{"model":"tiny","prompt":"Once upon a time","max_tokens":6,"temperature":0}`
	key := fmt.Sprint("request-", l.requests.Add(1))
	for try := range 3 * len(l.nodes.http) {
		address := l.nodes.http[(n+try)%len(l.nodes.http)]
		req, err := http.NewRequest(http.MethodPost, "http://"+address+"/v1/completions", strings.NewReader(body))
		if err != nil {
			l.nodes.t.Error(err)
			return
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", key)
		resp, err := client.Do(req)
		if err != nil {
			l.again.Add(1)
			continue
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(data), "shutting_down") {
			l.again.Add(1)
			continue
		}
		_, text, _ := strings.Cut(string(data), `"text":`)
		text, _, _ = strings.Cut(text, `,`)
		if err != nil || resp.StatusCode != http.StatusOK || text == "" {
			l.nodes.t.Errorf("request to %s: %v, %s, %s", address, err, resp.Status, data)
			return
		}
		if first := l.answer.Swap(&text); first != nil && *first != text {
			l.nodes.t.Errorf("request to %s: answer %s, before %s", address, text, *first)
		}
		l.served.Add(1)
		return
	}
	l.nodes.t.Error("no node listens")
}

func (l *load) stop() {
	close(l.stopped)
	l.clients.Wait()
}

// startWorker runs a worker for the cluster.
func (c *nodes) startWorker(id string) *process {
	c.t.Helper()
	p := &process{t: c.t, done: make(chan struct{})}
	p.cmd = command(c.t, append([]string{"worker", "--id", id, "--model", "tiny", "--listen", freePort(c.t), "--control", c.join, "--threads", "1"},
		c.tls(trust.Worker, id).args()...)...)
	p.start()
	return p
}

// TestRollingRestart restarts every node of a cluster under load, as an upgrade does: no request
// fails, and leadership is handed over instead of lost.
func TestRollingRestart(t *testing.T) {
	c := newNodes(t, 3, func(int) []string { return nil })
	c.startWorker("w")
	c.leader(0, 1, 2)
	for i := range 3 {
		c.run[i].waitReady()
	}
	l := startLoad(c, 4)
	defer l.stop()
	progress := func() {
		t.Helper()
		before := l.served.Load()
		c.run[0].waitFor("serving", func() bool { return l.served.Load() > before+12 || t.Failed() })
	}
	for i := range 3 {
		progress()
		leader := c.leader(0, 1, 2)
		before := c.run[i]
		began := time.Now()
		if code := before.interrupt(); code != 0 {
			t.Errorf("node %d ended with %d", i, code)
		}
		took := time.Since(began)
		rest := []int{(i + 1) % 3, (i + 2) % 3}
		c.leader(rest...)
		for _, j := range rest {
			if strings.Contains(c.run[j].out.String(), "process is gone") {
				t.Errorf("node %d had to find out that node %d is gone", j, i)
			}
		}
		progressed := l.served.Load()
		c.run[rest[0]].waitFor("serving without one", func() bool { return l.served.Load() > progressed+4 || t.Failed() })
		c.start(i)
		c.leader(0, 1, 2)
		c.run[i].waitReady()
		t.Logf("node %d (leader: %t) stopped within %v", i, i == leader, took)
	}
	progress()
	t.Logf("%d requests, %d connections failed", l.served.Load(), l.again.Load())
}
