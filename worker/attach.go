package worker

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const (
	// statsInterval is how often an idle stream carries the worker's figures.
	statsInterval = 250 * time.Millisecond
	// messageBytes is about how large a message of events may be.
	messageBytes = 1 << 20
)

// Attach streams all that concerns one gateway: a message a step while it keeps up, larger ones when
// it has fallen behind.
func (w *Worker) Attach(stream grpc.BidiStreamingServer[pb.AttachRequest, pb.AttachResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello.GetGatewayId() == "" {
		return status.Error(codes.InvalidArgument, "the first message must be a hello with a gateway_id")
	}
	s := w.outbox.attach(hello)
	defer w.outbox.detach(s)
	// This goroutine ends with the stream, which ends with this call.
	broken := make(chan struct{})
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				close(broken)
				return
			}
			switch m := m.GetMessage().(type) {
			case *pb.AttachRequest_Abort:
				if w.outbox.owns(hello.GatewayId, m.Abort.GetRequestId()) {
					w.engine.Abort(m.Abort.GetRequestId(), m.Abort.GetReason())
				}
			case *pb.AttachRequest_Resume:
				w.outbox.resume(s, m.Resume)
			}
		}
	}()
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	resp := &pb.AttachResponse{Stats: w.wireStats()}
	for {
		more := true
		for more {
			resp.Events, more = w.outbox.collect(nil, s, messageBytes)
			if len(resp.Events) == 0 && resp.Stats == nil {
				break
			}
			if err := stream.Send(resp); err != nil {
				return err
			}
			resp = &pb.AttachResponse{}
		}
		select {
		case <-s.wake:
		case <-tick.C:
			resp.Stats = w.wireStats()
		case <-s.gone:
			return status.Error(codes.Aborted, "another session of this gateway took over")
		case <-w.stopping:
			// What the engine's last step brought is in the outbox by now.
			for more = true; more; {
				if resp.Events, more = w.outbox.collect(nil, s, messageBytes); len(resp.Events) > 0 {
					if err := stream.Send(resp); err != nil {
						return err
					}
				}
			}
			return status.Error(codes.Unavailable, "worker stops")
		case <-broken:
			return nil
		}
	}
}

func (w *Worker) wireStats() *pb.WorkerStats {
	s := w.Stats()
	return &pb.WorkerStats{
		Running: int32(s.Running), Waiting: int32(s.Waiting),
		FreeBlocks: int32(s.FreeBlocks), TotalBlocks: int32(s.Blocks), BlockTokens: w.info.BlockTokens,
		PrefixQueryTokens: s.PrefixQueryTokens, PrefixHitTokens: s.PrefixHitTokens, PrefixShortTokens: s.PrefixShortTokens,
		Preemptions: s.Preemptions, Steps: s.Steps, StepTokens: s.StepTokens,
		HostHitTokens: s.Tiers.HostHits * int64(w.info.BlockTokens), DiskHitTokens: s.Tiers.DiskHits * int64(w.info.BlockTokens),
		HostBlocks: int32(s.Tiers.Pages), DiskBlocks: int32(s.Disk.Pages), DiskDamaged: s.Disk.Damaged,
		PeerHitTokens: s.Tiers.PeerHits * int64(w.info.BlockTokens), FailedFetches: s.FailedFetches,
		Swaps: s.Swaps, Returned: s.Returned,
		Drafts: s.Drafts, DraftTokens: s.DraftTokens, AcceptedDraftTokens: s.AcceptedTokens[:w.settings.Engine.Speculate],
	}
}
