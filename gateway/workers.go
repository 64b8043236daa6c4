package gateway

import (
	"context"
	"sort"
	"sync"
	"time"

	"google.golang.org/grpc"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
)

const (
	// attachSilence is how long a worker's stream may bring nothing, not even figures, before it counts
	// as broken; workers send every 250 ms.
	attachSilence = 3 * time.Second
	// sendQueue bounds the messages waiting to be written to one worker. What does not fit is lost: the
	// leader hears of aborts too, and what is to be sent again is asked for again.
	sendQueue = 1024
)

// attachment is the session with one worker. Its goroutine lives as long as the worker is in the
// leader's set, and connects again whenever the stream breaks.
type attachment struct {
	info   *pb.WorkerInfo
	cancel context.CancelFunc
	out    chan *pb.AttachRequest

	mu        sync.Mutex
	connected bool
	stats     *pb.WorkerStats
}

func (a *attachment) snapshot() (connected bool, stats *pb.WorkerStats) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.connected, a.stats
}

// send queues a message for the worker, if there is room.
func (a *attachment) send(m *pb.AttachRequest) {
	select {
	case a.out <- m:
	default:
	}
}

func (a *attachment) setConnected(on bool) {
	a.mu.Lock()
	a.connected = on
	a.mu.Unlock()
}

// attached reports whether the stream of a worker is up.
func (g *Gateway) attached(worker string) bool {
	a := g.workers.get(worker)
	if a == nil {
		return false
	}
	connected, _ := a.snapshot()
	return connected
}

// workers is the set of attachments.
type workers struct {
	mu   sync.Mutex
	byID map[string]*attachment
	wg   sync.WaitGroup
}

func (w *workers) list() []*attachment {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]*attachment, 0, len(w.byID))
	for _, a := range w.byID {
		list = append(list, a)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].info.Id < list[j].info.Id })
	return list
}

// capacity is what the workers of a model can do together.
type capacity struct {
	// ready are those that are connected.
	ready int
	// context is the context length that the roomiest of all allows, at most the model's own; tenants
	// have that of those that may hold less on every worker. What a request may ask for does not depend
	// on who is connected just now: one that needs a large worker waits for it.
	context int
	tenants map[string]int
}

// contextOf is the context length that a tenant's requests have.
func (c capacity) contextOf(tenant string) int {
	if context, ok := c.tenants[tenant]; ok {
		return context
	}
	return c.context
}

// capacities sums the workers up by model, of models with one that is connected: a request asks for that
// twice, so it is not counted then, but when a worker comes or goes.
func (w *workers) capacities(models map[string]*served) map[string]capacity {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]capacity{}
	bounded := map[string]map[string]bool{}
	each := func(add func(a *attachment, m *served)) {
		for _, a := range w.byID {
			if m := models[a.info.Model]; m != nil && out[m.ID].ready > 0 {
				add(a, m)
			}
		}
	}
	for _, a := range w.byID {
		if connected, _ := a.snapshot(); connected && models[a.info.Model] != nil {
			c := out[models[a.info.Model].ID]
			c.ready++
			out[models[a.info.Model].ID] = c
		}
	}
	each(func(a *attachment, m *served) {
		c := out[m.ID]
		c.context = max(c.context, roomOf(a.info, m, ""))
		out[m.ID] = c
		for _, t := range a.info.Tenants {
			if bounded[m.ID] == nil {
				bounded[m.ID] = map[string]bool{}
			}
			bounded[m.ID][t.Tenant] = true
		}
	})
	each(func(a *attachment, m *served) {
		for tenant := range bounded[m.ID] {
			c := out[m.ID]
			if c.tenants == nil {
				c.tenants = map[string]int{}
			}
			c.tenants[tenant] = max(c.tenants[tenant], roomOf(a.info, m, tenant))
			out[m.ID] = c
		}
	})
	return out
}

// roomOf is the longest sequence that a tenant may have on a worker, prompt and output together.
func roomOf(w *pb.WorkerInfo, m *served, tenant string) int {
	room := m.ContextLength
	if w.ContextLength > 0 {
		room = min(room, int(w.ContextLength))
	}
	if blocks := int(w.TotalBlocks) * int(w.BlockTokens); blocks > 0 {
		room = min(room, blocks)
	}
	for _, t := range w.Tenants {
		if t.Tenant == tenant {
			room = min(room, int(t.Blocks)*int(w.BlockTokens))
		}
	}
	return room
}

func (w *workers) get(id string) *attachment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.byID[id]
}

// updateWorkers attaches the gateway to workers that came, or came back as something else, and leaves those
// that are gone.
func (g *Gateway) updateWorkers(ctx context.Context, came []*pb.WorkerInfo, gone []string) {
	if len(came)+len(gone) == 0 {
		return
	}
	defer g.updateReady()
	w := &g.workers
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range gone {
		w.leave(id)
	}
	for _, info := range came {
		w.leave(info.Id)
		if m := g.models[info.Model]; m == nil {
			g.Log.Warn("a worker serves a model that this gateway does not know", "worker", info.Id, "model", info.Model)
		} else if m.Digest != "" && info.ModelDigest != "" && m.Digest != info.ModelDigest {
			g.Log.Error("a worker's model differs from this gateway's copy; it is left out", "worker", info.Id, "model", info.Model)
			continue
		}
		run, cancel := context.WithCancel(ctx)
		a := &attachment{info: info, cancel: cancel, out: make(chan *pb.AttachRequest, sendQueue)}
		w.byID[info.Id] = a
		w.wg.Go(func() { g.attach(run, a) })
	}
}

// leave ends the session with a worker, if there is one. The lock is held.
func (w *workers) leave(id string) {
	if a := w.byID[id]; a != nil {
		a.cancel()
		delete(w.byID, id)
	}
}

// attach keeps a session with one worker until ctx ends.
func (g *Gateway) attach(ctx context.Context, a *attachment) {
	for n := 0; ctx.Err() == nil; n++ {
		conn, done, err := g.DialWorker(a.info.Id, a.info.Address)
		if err == nil {
			var talked bool
			talked, err = g.session(ctx, a, pb.NewWorkerClient(conn))
			if talked {
				n = 0
			}
			_ = done() // the session is over; there is nothing left to lose on the connection
		}
		if ctx.Err() != nil {
			return
		}
		if n == 0 {
			g.Log.Warn("a worker's stream broke", "worker", a.info.Id, "address", a.info.Address, "error", err)
		}
		// Streams wait for it, and a worker that stays away is soon out of the leader's set.
		if !transport.ToPeer.Wait(ctx, n, nil) {
			return
		}
	}
}

// session runs one Attach stream: this goroutine receives, one more sends. It reports whether the
// worker said anything.
func (g *Gateway) session(ctx context.Context, a *attachment, client pb.WorkerClient) (talked bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silent := time.AfterFunc(attachSilence, cancel)
	defer silent.Stop()
	stream, err := client.Attach(ctx)
	if err != nil {
		return false, err
	}
	hello := &pb.AttachHello{GatewayId: g.NodeID}
	for _, l := range g.lives.all() {
		if p := l.resumePoint(a.info.Id); p != nil {
			hello.Resume = append(hello.Resume, p)
		}
	}
	if err := stream.Send(&pb.AttachRequest{Message: &pb.AttachRequest_Hello{Hello: hello}}); err != nil {
		return false, err
	}
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel()
	sender.Go(func() { transmit(ctx, stream, a.out) })
	defer func() {
		a.setConnected(false)
		g.lives.detached(a.info.Id)
		g.updateReady()
	}()
	a.setConnected(true)
	g.updateReady()
	r := router{table: &g.lives, worker: a.info.Id}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return talked, err
		}
		talked = true
		silent.Reset(attachSilence)
		if resp.Stats != nil {
			a.mu.Lock()
			a.stats = resp.Stats
			a.mu.Unlock()
			g.totals.take(source{a.info.Id, a.info.Model}, resp.Stats, g.attached)
		}
		if len(resp.Events) > 0 {
			if r.route(resp.Events, g.Now()) {
				g.poke()
			}
		}
	}
}

func transmit(ctx context.Context, stream grpc.BidiStreamingClient[pb.AttachRequest, pb.AttachResponse], out <-chan *pb.AttachRequest) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-out:
			if stream.Send(m) != nil {
				return // the receiver sees why
			}
		}
	}
}

// abort ends a request that is this gateway's wherever it is: quickly at the worker, surely at the
// leader.
func (g *Gateway) abort(ctx context.Context, l *live, reason string) {
	l.mu.Lock()
	worker := l.worker
	l.mu.Unlock()
	m := &pb.AbortRequest{RequestId: l.id, Reason: reason, GatewayId: g.NodeID}
	if a := g.workers.get(worker); a != nil {
		a.send(&pb.AttachRequest{Message: &pb.AttachRequest_Abort{Abort: m}})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	if _, err := ask(ctx, g.control, m, pb.ControlClient.Abort); err != nil {
		g.Log.Warn("the leader did not take an abort", "request", l.id, "error", err)
	}
}
