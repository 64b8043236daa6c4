package gatewaytest

import (
	"slices"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// What tests do to a cluster.

// recallWait is how long the leader waits for what gateways have of a lost request.
const recallWait = 100 * time.Millisecond

// Elect makes a node the leader; a negative one is an election that nobody has won yet.
func (c *Cluster) Elect(place int) {
	c.mu.Lock()
	c.leader = place
	c.changed.Broadcast()
	c.mu.Unlock()
}

// KillNode cuts a node off, StartNode brings it back. Neither elects anybody.
func (c *Cluster) KillNode(place int) { c.kill(nodeID(place)) }

// StartNode undoes KillNode.
func (c *Cluster) StartNode(place int) { c.serveNode(place) }

// Mute lets an address take calls and never answer, as behind a broken network.
func (c *Cluster) Mute(address string, on bool) {
	c.mu.Lock()
	c.mute[address] = on
	c.changed.Broadcast()
	c.mu.Unlock()
}

// LoseAnswers lets the next n Submits do their work and lose their answers.
func (c *Cluster) LoseAnswers(n int) {
	c.mu.Lock()
	c.unheard = n
	c.mu.Unlock()
}

// KillWorker cuts a worker off for good. Its requests go on elsewhere once the gateways have given
// back what they have of them, or recallWait has passed; requests that had ended are over.
func (c *Cluster) KillWorker(place int) {
	id := workerID(place)
	c.kill(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.workers = slices.DeleteFunc(c.workers, func(w *pb.WorkerInfo) bool { return w.Id == id })
	for _, r := range c.rosters {
		r.Remove(id)
	}
	for _, key := range c.order {
		r := c.runs[key]
		switch {
		case r.worker != id:
		case r.done && !r.delivered:
			c.tell(r.gateway, func(w *watcher) {
				w.ended = append(w.ended, &pb.Ended{RequestId: key, FinishReason: r.reason, Error: r.errorMsg})
			})
		case !r.done:
			c.lose(r)
		}
	}
	c.changed.Broadcast()
}

// WorkerOf is the place of the worker that has a request, -1 for none.
func (c *Cluster) WorkerOf(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.opts.Workers {
		if r := c.runs[id]; r != nil && r.worker == workerID(i) {
			return i
		}
	}
	return -1
}

// Requeue takes a request from its worker, which goes on living, and starts it elsewhere.
func (c *Cluster) Requeue(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lose(c.runs[id])
}

// lose takes a request from its worker. The lock is held.
func (c *Cluster) lose(r *run) {
	told := false
	lost := &pb.Lost{RequestId: r.req.Id, Term: term, Index: r.index}
	c.tell(r.gateway, func(w *watcher) { w.lost, told = append(w.lost, lost), true })
	for s := range c.sessions {
		if s.worker == r.worker {
			delete(s.marks, r.req.Id)
		}
	}
	r.worker, r.lost = "", true
	if !told {
		c.requeue(r)
		return
	}
	index := r.index
	time.AfterFunc(recallWait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if r.lost && r.index == index && !c.closed {
			c.requeue(r)
		}
	})
}

// ForgetOutputs drops what is kept of ended requests' output; their ends stay known.
func (c *Cluster) ForgetOutputs() {
	c.mu.Lock()
	for _, r := range c.runs {
		r.bare = r.done
	}
	c.mu.Unlock()
}

// Forget drops a request altogether.
func (c *Cluster) Forget(id string) {
	c.mu.Lock()
	delete(c.runs, id)
	c.order = slices.DeleteFunc(c.order, func(x string) bool { return x == id })
	for s := range c.sessions {
		delete(s.marks, id)
	}
	c.mu.Unlock()
}

// Skip makes the sessions that carry a request leave out its next n tokens.
func (c *Cluster) Skip(id string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.sessions {
		if m := s.marks[id]; m != nil {
			for i := range m.sent {
				m.sent[i] += n
			}
		}
	}
}

// Fail ends a request with an error, as a worker would.
func (c *Cluster) Fail(id, message string) { c.End(id, pb.FinishReason_FINISH_REASON_ERROR, message) }

// End ends a request for a reason, as a worker would.
func (c *Cluster) End(id string, reason pb.FinishReason, message string) {
	c.mu.Lock()
	if r := c.runs[id]; r != nil {
		r.end(reason, message)
	}
	c.changed.Broadcast()
	c.mu.Unlock()
}

// EndQueued tells gateways through Watch that a request has ended.
func (c *Cluster) EndQueued(id string, reason pb.FinishReason, message string) {
	c.mu.Lock()
	c.endings = append(c.endings, &pb.Ended{RequestId: id, FinishReason: reason, Error: message})
	c.changed.Broadcast()
	c.mu.Unlock()
}

// Break cuts all Attach streams; their output stays for whoever attaches next.
func (c *Cluster) Break() {
	c.mu.Lock()
	for s := range c.sessions {
		s.broken = true
	}
	c.changed.Broadcast()
	c.mu.Unlock()
}

// SetWorkers makes the first n workers the set that Watch shows.
func (c *Cluster) SetWorkers(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setWorkers(n)
	c.changed.Broadcast()
}

func (c *Cluster) setWorkers(n int) {
	for _, r := range c.rosters {
		for _, w := range c.workers {
			r.Remove(w.Id)
		}
		for i := range n {
			r.Put(c.info(workerID(i)))
		}
	}
	c.workers = nil
	for i := range n {
		c.workers = append(c.workers, c.info(workerID(i)))
	}
}

// Queue tells gateways how many requests wait for the model's workers.
func (c *Cluster) Queue(requests int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queued = &pb.Queued{Models: []*pb.QueuedModel{{Name: c.opts.Model, Requests: requests}}}
	c.changed.Broadcast()
}

// Unserved tells gateways that requests for the model are refused for a reason, and that they are not any
// more if there is none.
func (c *Cluster) Unserved(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unserved = &pb.Unserved{}
	if reason != "" {
		c.unserved.Models = []*pb.UnservedModel{{Name: c.opts.Model, Reason: reason}}
	}
	c.changed.Broadcast()
}
