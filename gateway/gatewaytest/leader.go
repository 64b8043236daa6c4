package gatewaytest

import (
	"bytes"
	"context"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// term is that of all dispatches; their numbers grow from leader to leader.
const term = 1

// QueueFull is the refusal of a full queue, with the wait that it asks for.
func QueueFull(after time.Duration) error {
	return refusal(codes.ResourceExhausted, "the queue is full", &errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
}

// Late is the refusal of a request whose deadline has passed.
func Late() error {
	return refusal(codes.DeadlineExceeded, "request.patience_ms: the deadline has passed", &errdetails.ErrorInfo{Reason: "deadline", Domain: "quire"})
}

// NoWorker is how a leader refuses a request for a model of which no worker takes any.
func NoWorker() error {
	return refusal(codes.Unavailable, `model "test" takes no requests: it has no workers`, &errdetails.ErrorInfo{Reason: "no_worker", Domain: "quire"})
}

func refusal(code codes.Code, message string, detail protoadapt.MessageV1) error {
	s := status.New(code, message)
	if d, err := s.WithDetails(detail); err == nil {
		s = d
	}
	return s.Err()
}

// node is one fake Control service. All nodes know the same.
type node struct {
	pb.UnimplementedControlServer
	c     *Cluster
	place int
}

// leads is nil on the leader, and elsewhere the error that says who leads. A mute node waits for ctx.
func (n *node) leads(ctx context.Context, trailer func(metadata.MD)) error {
	c := n.c
	c.mu.Lock()
	mute, leader := c.mute[nodeID(n.place)], c.leader
	if mute {
		c.unanswered++
		c.changed.Broadcast()
	}
	c.mu.Unlock()
	if mute {
		<-ctx.Done()
		c.mu.Lock()
		c.unanswered--
		c.mu.Unlock()
		return status.FromContextError(ctx.Err()).Err()
	}
	if leader == n.place {
		return nil
	}
	if leader >= 0 {
		trailer(metadata.Pairs("quire-leader", nodeID(leader)))
	}
	return status.Error(codes.FailedPrecondition, "this node does not lead")
}

func unary(ctx context.Context) func(metadata.MD) {
	return func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) } // it fails outside of a call alone
}

func (n *node) Submit(ctx context.Context, req *pb.SubmitRequest) (*pb.SubmitResponse, error) {
	if err := n.leads(ctx, unary(ctx)); err != nil {
		return nil, err
	}
	c := n.c
	c.mu.Lock()
	resp, err := c.submit(req)
	gate := c.gate
	if err == nil && c.unheard > 0 {
		c.unheard--
		err = status.Error(codes.Unavailable, "the answer is lost")
	}
	c.mu.Unlock()
	if gate != nil && err == nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (c *Cluster) submit(in *pb.SubmitRequest) (*pb.SubmitResponse, error) {
	if c.refusal != nil {
		return nil, c.refusal
	}
	req := in.Request
	if r := c.runs[req.Id]; r != nil {
		if !bytes.Equal(r.digest, in.Digest) {
			return nil, status.Errorf(codes.AlreadyExists, "request.id: %q was used for a request with another body", req.Id)
		}
		if !in.Rerun || !r.done {
			return &pb.SubmitResponse{Term: term, Index: r.index, Duplicate: true, WorkerId: r.worker, FinishReason: r.reason, MaxTokens: r.req.Sampling.GetMaxTokens()}, nil
		}
		c.reruns++
		c.order = slices.DeleteFunc(c.order, func(id string) bool { return id == req.Id })
	}
	live := 0
	for _, r := range c.runs {
		if !r.done {
			live++
		}
	}
	if live >= c.opts.MaxLive {
		return nil, QueueFull(1500 * time.Millisecond)
	}
	if len(c.workers) == 0 {
		return nil, status.Error(codes.Unavailable, "no worker is in session")
	}
	r := c.newRun(req)
	r.digest = in.Digest
	c.runs[req.Id] = r
	c.order = append(c.order, req.Id)
	c.dispatch(r)
	return &pb.SubmitResponse{Term: term, Index: r.index, WorkerId: r.worker}, nil
}

// dispatch gives a request to the next worker. The lock is held.
func (c *Cluster) dispatch(r *run) {
	c.index++
	r.index = c.index
	if len(c.workers) > 0 {
		r.worker = c.workers[c.placed%len(c.workers)].Id
		c.placed++
	}
	c.redirect(r)
}

// redirect has the sessions of the request's gateway, and no others, carry it from its dispatch's
// first token on. The lock is held.
func (c *Cluster) redirect(r *run) {
	for s := range c.sessions {
		delete(s.marks, r.req.Id)
		if s.worker == r.worker && s.gateway == r.gateway {
			s.marks[r.req.Id] = newMark(r, nil)
		}
	}
	c.changed.Broadcast()
}

// requeue starts a lost request again after what the log has of it. The lock is held.
func (c *Cluster) requeue(r *run) {
	old := r.choices
	r.lost, r.choices, r.first = false, nil, make([]int, len(old))
	open := false
	for i := range old {
		fresh := c.newChoice(r.req)
		for k := range r.logged[i] {
			fresh.take(c.opts.Tokenizer, r.req.Sampling, c.opts.Reply(r.req, i, k))
		}
		if !r.probabilities() {
			r.first[i] = r.logged[i]
		}
		r.choices = append(r.choices, fresh)
		open = open || fresh.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED
	}
	c.dispatch(r)
	if !open {
		r.done, r.reason = true, r.choices[0].finish
	}
}

func (n *node) Recall(ctx context.Context, req *pb.RecallRequest) (*pb.RecallResponse, error) {
	if err := n.leads(ctx, unary(ctx)); err != nil {
		return nil, err
	}
	c := n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range req.Requests {
		r := c.runs[p.RequestId]
		if r == nil || !r.lost || r.index != p.Index || r.gateway != req.GatewayId {
			continue
		}
		c.recalls++
		for _, ch := range p.Choices {
			for k, id := range ch.TokenIds {
				if id != c.opts.Reply(r.req, int(ch.Choice), k) {
					c.wrong = append(c.wrong, p.String())
					return nil, status.Error(codes.InvalidArgument, "a token that was never generated")
				}
			}
			r.logged[ch.Choice] = max(r.logged[ch.Choice], len(ch.TokenIds))
		}
		c.requeue(r)
	}
	return &pb.RecallResponse{}, nil
}

func (n *node) Adopt(ctx context.Context, req *pb.AdoptRequest) (*pb.AdoptResponse, error) {
	if err := n.leads(ctx, unary(ctx)); err != nil {
		return nil, err
	}
	c := n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.runs[req.RequestId]
	if r == nil || r.req.Tenant != req.Tenant {
		return &pb.AdoptResponse{}, nil
	}
	if old := r.gateway; old != req.GatewayId && !req.IfMine {
		r.gateway = req.GatewayId
		c.adopted++
		c.tell(old, func(w *watcher) { w.adopted = append(w.adopted, r.req.Id) })
		c.redirect(r)
	}
	slim := proto.CloneOf(r.req)
	slim.Prompt, slim.CacheSalt, slim.GatewayId = nil, nil, r.gateway
	resp := &pb.AdoptResponse{Found: true, Request: slim, PromptTokens: int32(len(r.req.Prompt)), WorkerId: r.worker,
		Term: term, Index: r.index, FinishReason: r.reason, Error: r.errorMsg}
	usage := &pb.Usage{PromptTokens: resp.PromptTokens, CachedTokens: r.cached()}
	for i, ch := range r.choices {
		o := &pb.Output{TokenIds: ch.tokens[:r.logged[i]:r.logged[i]]}
		if r.logged[i] == len(ch.tokens) {
			o.FinishReason, o.StopReason = ch.finish, ch.stopped
		}
		usage.CompletionTokens += int32(len(ch.tokens))
		if !r.bare {
			resp.Outputs = append(resp.Outputs, o)
		}
	}
	if r.done {
		resp.Usage = usage
	}
	return resp, nil
}

func (n *node) Abort(ctx context.Context, req *pb.AbortRequest) (*pb.AbortResponse, error) {
	if err := n.leads(ctx, unary(ctx)); err != nil {
		return nil, err
	}
	return &pb.AbortResponse{Found: n.c.abort(req)}, nil
}

func (c *Cluster) abort(req *pb.AbortRequest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.runs[req.RequestId]
	switch {
	case r == nil || r.done:
		return r != nil
	case req.Tenant != nil && req.GetTenant() != r.req.Tenant, req.Tenant == nil && req.GatewayId != "" && req.GatewayId != r.gateway:
		return false
	}
	r.end(pb.FinishReason_FINISH_REASON_ABORT, req.Reason)
	c.aborts = append(c.aborts, req.RequestId)
	c.changed.Broadcast()
	return true
}

// watcher is one gateway's Watch stream.
type watcher struct {
	gateway string
	endings int // of those told to everybody
	ended   []*pb.Ended
	lost    []*pb.Lost
	adopted []string
	owned   []string
}

// tell changes what the watchers of one gateway are to hear. The lock is held.
func (c *Cluster) tell(gateway string, change func(*watcher)) {
	for w := range c.watchers {
		if w.gateway == gateway {
			change(w)
		}
	}
	c.changed.Broadcast()
}

// TellOwned tells each gateway what streams to it, as a leader does now and then.
func (c *Cluster) TellOwned() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.watchers {
		for id, r := range c.runs {
			if r.gateway == w.gateway && !r.done {
				w.owned = append(w.owned, id)
			}
		}
	}
	c.changed.Broadcast()
}

func (n *node) Watch(req *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.WatchResponse]) error {
	ctx := stream.Context()
	if err := n.leads(ctx, stream.SetTrailer); err != nil {
		return err
	}
	c := n.c
	stop := context.AfterFunc(ctx, func() { c.mu.Lock(); c.changed.Broadcast(); c.mu.Unlock() })
	defer stop()
	w := &watcher{gateway: req.GatewayId}
	known := req.Known
	var news []*pb.RosterNews
	greeted := false
	var unserved *pb.Unserved // as it was said last
	var queued *pb.Queued     // the same
	c.mu.Lock()
	c.watchers[w] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.watchers, w)
		c.mu.Unlock()
	}()
	for {
		c.mu.Lock()
		told := func() bool {
			if len(news) == 0 {
				if news = c.rosters[n.place].Since(known); len(news) > 0 {
					known = news[len(news)-1].At
				}
			}
			return !greeted || unserved != c.unserved || queued != c.queued || len(news) > 0 || w.endings < len(c.endings) || len(w.ended)+len(w.lost)+len(w.adopted)+len(w.owned) > 0
		}
		for !c.closed && ctx.Err() == nil && c.leader == n.place && !(told() && !c.mute[nodeID(n.place)]) {
			c.changed.Wait()
		}
		if c.closed || ctx.Err() != nil {
			c.mu.Unlock()
			return status.Error(codes.Unavailable, "the fake leader is closing")
		}
		if c.leader != n.place {
			c.mu.Unlock()
			return n.leads(ctx, stream.SetTrailer)
		}
		resp := &pb.WatchResponse{Ended: append(w.ended, c.endings[w.endings:]...), Lost: w.lost, Adopted: w.adopted, Owned: w.owned, Unserved: c.unserved, Queued: c.queued}
		if len(news) > 0 {
			resp.Workers, news = news[0], news[1:]
		}
		greeted, unserved, queued, w.endings, w.ended, w.lost, w.adopted, w.owned = true, c.unserved, c.queued, len(c.endings), nil, nil, nil, nil
		c.mu.Unlock()
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (n *node) Work(grpc.BidiStreamingServer[pb.WorkRequest, pb.WorkResponse]) error {
	return status.Error(codes.Unimplemented, "gatewaytest: the fake cluster's workers are built in")
}
