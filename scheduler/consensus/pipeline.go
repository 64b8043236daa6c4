package consensus

import (
	"time"

	"github.com/hashicorp/raft"
)

// pipelineStall is how long a send to a peer may wait for its turn. Peers answer within milliseconds,
// and are sent to without a pipeline after it.
const pipelineStall = 2 * time.Second

// pipeline frees raft's replication from a wait without end. Raft stops reading a pipeline's answers at
// the first one that refuses (the peer has a newer term, or a shorter log); if it is sending at that
// moment, the send waits for a place that only an answer would free. The peer would get no more entries
// from this leader, and raft could not be shut down.
type pipeline struct {
	raft.AppendPipeline
	stall time.Duration
	// barred says why this node must not lead.
	barred func() error
}

func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := p.barred(); err != nil {
		return nil, err
	}
	timer := time.AfterFunc(p.stall, func() { _ = p.Close() }) // It ends the send with an error.
	defer timer.Stop()
	return p.AppendPipeline.AppendEntries(args, resp)
}
