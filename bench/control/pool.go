package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
)

const (
	// poolStep is how long a simulated worker's step takes: every request that runs gets a token. It is also
	// how often progress is told.
	poolStep      = 100 * time.Millisecond
	poolHeartbeat = 250 * time.Millisecond
	poolBlocks    = 1 << 16
)

// pool is a set of simulated workers: they keep the whole of a worker's side of the protocol, towards the
// leader and the gateways, and compute nothing.
type pool struct {
	leader string
	server *grpc.Server
	done   sync.WaitGroup
	cancel context.CancelFunc

	workers map[string]*poolWorker // by address
}

// poolWorker is one of them.
type poolWorker struct {
	info *pb.WorkerInfo

	mu       sync.Mutex
	running  map[string]*poolRun
	gateways map[string]chan *pb.AttachResponse
	work     pb.Control_WorkClient // nil while there is no session
	sequence uint64
	index    uint64
	finished []*pb.FinishedRequest
}

// poolRun is a request that runs. Its tokens are all the same.
type poolRun struct {
	request     *pb.Request
	term, index uint64
	generated   int32
	sent        int32
	told        int32
	ended       bool
}

func (r *poolRun) news() *pb.ChoiceProgress {
	news := &pb.ChoiceProgress{First: r.told, TokenIds: poolTokens(r.generated - r.told)}
	if r.told = r.generated; r.ended {
		news.FinishReason = pb.FinishReason_FINISH_REASON_LENGTH
	}
	return news
}

func poolTokens(n int32) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = 100 // A letter of the tiny model's.
	}
	return tokens
}

func startPool(ctx context.Context, leader, model string, size int) (*pool, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &pool{leader: leader, server: grpc.NewServer(), cancel: cancel, workers: map[string]*poolWorker{}}
	pb.RegisterWorkerServer(p.server, poolService{p: p})
	var listeners []net.Listener
	for n := range size {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			cancel()
			return nil, err
		}
		listeners = append(listeners, l)
		p.workers[l.Addr().String()] = &poolWorker{
			info: &pb.WorkerInfo{
				Id: fmt.Sprintf("worker-%04d", n), Address: l.Addr().String(), Model: model, ContextLength: 1024, BlockTokens: 16,
				TotalBlocks: poolBlocks, MaxSequences: 64, MaxBatchTokens: 8192, Device: "simulated", Pool: "default",
			},
			running: map[string]*poolRun{}, gateways: map[string]chan *pb.AttachResponse{},
		}
	}
	for _, l := range listeners {
		p.done.Go(func() { _ = p.server.Serve(l) }) // It ends with the server.
	}
	conn, err := transport.Dial(nil, leader, transport.Expected{})
	if err != nil {
		cancel()
		return nil, err
	}
	for _, w := range p.workers {
		p.done.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				_ = w.session(ctx, pb.NewControlClient(conn)) // Whatever ended it, the worker comes back.
				if !transport.ToLeader.Wait(ctx, n, nil) {
					return
				}
			}
		})
	}
	p.done.Go(func() {
		defer conn.Close()
		step, beat := time.NewTicker(poolStep), time.NewTicker(poolHeartbeat)
		defer step.Stop()
		defer beat.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-step.C:
				for _, w := range p.workers {
					w.step()
				}
			case <-beat.C:
				for _, w := range p.workers {
					w.heartbeat()
				}
			}
		}
	})
	return p, nil
}

func (p *pool) stop() {
	p.cancel()
	p.server.Stop()
	p.done.Wait()
}

// session is the worker's stream with the leader.
func (w *poolWorker) session(ctx context.Context, leader pb.ControlClient) error {
	stream, err := leader.Work(ctx)
	if err != nil {
		return err
	}
	hello := &pb.Hello{Worker: w.info}
	w.mu.Lock()
	for id := range w.running {
		hello.Running = append(hello.Running, id)
	}
	w.mu.Unlock()
	if err := stream.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	defer func() {
		w.mu.Lock()
		w.work = nil
		w.mu.Unlock()
	}()
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		w.mu.Lock()
		switch m := m.GetMessage().(type) {
		case *pb.WorkResponse_Welcome:
			w.work = stream
		case *pb.WorkResponse_Dispatch:
			w.index = m.Dispatch.GetIndex()
			for _, r := range m.Dispatch.GetRequests() {
				w.running[r.GetId()] = &poolRun{request: r, term: m.Dispatch.GetTerm(), index: m.Dispatch.GetIndex()}
			}
		case *pb.WorkResponse_Revoke:
			for _, id := range m.Revoke.GetRequestIds() {
				delete(w.running, id)
			}
		}
		w.mu.Unlock()
	}
}

// say sends to the leader; mu is held, because a stream takes one message at a time.
func (w *poolWorker) say(m *pb.WorkRequest) {
	if w.work != nil {
		_ = w.work.Send(m) // The receiver sees why.
	}
}

func (w *poolWorker) heartbeat() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sequence++
	w.say(&pb.WorkRequest{Message: &pb.WorkRequest_Heartbeat{Heartbeat: &pb.Heartbeat{
		Sequence: w.sequence, Running: int32(len(w.running)), FreeBlocks: int32(poolBlocks - 4*len(w.running)), DispatchIndex: w.index,
	}}})
}

// step gives every request a token, and tells gateways and leader.
func (w *poolWorker) step() {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]*pb.AttachResponse{}
	progress, finished := &pb.Progress{}, &pb.Finished{}
	for id, r := range w.running {
		if !r.ended {
			r.generated++
			r.ended = r.generated >= r.request.GetSampling().GetMaxTokens()
		}
		gateway := r.request.GetGatewayId()
		if w.gateways[gateway] == nil {
			continue // It is told when it is there.
		}
		if out[gateway] == nil {
			out[gateway] = &pb.AttachResponse{}
		}
		e := &pb.TokenEvent{RequestId: id, First: r.sent, TokenIds: poolTokens(r.generated - r.sent), Term: r.term, Index: r.index}
		r.sent = r.generated
		if r.ended {
			e.FinishReason, e.RequestDone = pb.FinishReason_FINISH_REASON_LENGTH, true
			finished.Requests = append(finished.Requests, &pb.FinishedRequest{
				RequestId: id, FinishReason: e.FinishReason, Term: r.term, Index: r.index, Choices: []*pb.ChoiceProgress{r.news()},
				Usage: &pb.Usage{PromptTokens: int32(len(r.request.GetPrompt())), CompletionTokens: r.generated},
			})
			delete(w.running, id)
		} else {
			progress.Requests = append(progress.Requests, &pb.RequestProgress{RequestId: id, Term: r.term, Index: r.index, Choices: []*pb.ChoiceProgress{r.news()}})
		}
		out[gateway].Events = append(out[gateway].Events, e)
	}
	for gateway, m := range out {
		w.gateways[gateway] <- m
	}
	if len(progress.Requests) > 0 {
		w.say(&pb.WorkRequest{Message: &pb.WorkRequest_Progress{Progress: progress}})
	}
	if len(finished.Requests) > 0 {
		w.say(&pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: finished}})
	}
}

// poolService answers gateways for all workers, each on a port of its own.
type poolService struct {
	pb.UnimplementedWorkerServer
	p *pool
}

var errNoWorker = errors.New("no simulated worker is here")

func (s poolService) Attach(stream pb.Worker_AttachServer) error {
	from, _ := peer.FromContext(stream.Context())
	w := s.p.workers[from.LocalAddr.String()]
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if w == nil || first.GetHello() == nil {
		return errNoWorker
	}
	gateway, out := first.GetHello().GetGatewayId(), make(chan *pb.AttachResponse, 1024)
	w.mu.Lock()
	w.gateways[gateway] = out
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.gateways[gateway] == out {
			delete(w.gateways, gateway)
		}
	}()
	stats := time.NewTicker(poolHeartbeat)
	defer stats.Stop()
	for {
		m := &pb.AttachResponse{}
		select {
		case <-stream.Context().Done():
			return nil
		case m = <-out:
		case <-stats.C:
			m.Stats = &pb.WorkerStats{TotalBlocks: poolBlocks, BlockTokens: 16}
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}
