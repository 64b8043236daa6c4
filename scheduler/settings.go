package scheduler

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Settings is what New takes. Zero values mean the defaults stated per field.
type Settings struct {
	// NodeID names this control-plane node; it must stay the same over restarts. Required.
	NodeID string
	// DataDir holds the Raft log and snapshots. Required unless Consensus says otherwise.
	DataDir string
	// Logger receives the node's log. Default slog.Default().
	Logger *slog.Logger

	// QueueRequests bounds the requests that wait for a worker. Default 16,384.
	QueueRequests int
	// QueueBytes bounds their encoded size together. Default 256 MiB.
	QueueBytes int64

	// HeartbeatInterval is what workers are asked for. Default 250 ms.
	HeartbeatInterval time.Duration
	// HeartbeatTimeout is the silence after which a worker in session counts as lost. Default 3 s.
	HeartbeatTimeout time.Duration
	// SessionGrace is how long a worker whose session broke may take to come back before its
	// requests go elsewhere. Default 1 s.
	SessionGrace time.Duration
	// ReconnectGrace is the same for workers that a new leader has not heard from. Default 5 s.
	ReconnectGrace time.Duration
}

func (s *Settings) setDefaults() {
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	if s.QueueRequests == 0 {
		s.QueueRequests = 16384
	}
	if s.QueueBytes == 0 {
		s.QueueBytes = 256 << 20
	}
	if s.HeartbeatInterval == 0 {
		s.HeartbeatInterval = 250 * time.Millisecond
	}
	if s.HeartbeatTimeout == 0 {
		s.HeartbeatTimeout = 3 * time.Second
	}
	if s.SessionGrace == 0 {
		s.SessionGrace = time.Second
	}
	if s.ReconnectGrace == 0 {
		s.ReconnectGrace = 5 * time.Second
	}
}

// Validate says which field is wrong, and its limit.
func (s Settings) Validate() error {
	switch {
	case s.NodeID == "":
		return errors.New("scheduler: NodeID is empty")
	case len(s.NodeID) > maxIDBytes:
		return fmt.Errorf("scheduler: NodeID is %d bytes long; the limit is %d", len(s.NodeID), maxIDBytes)
	case s.QueueRequests < 0:
		return fmt.Errorf("scheduler: QueueRequests is %d; it must be positive", s.QueueRequests)
	case s.QueueBytes < 0:
		return fmt.Errorf("scheduler: QueueBytes is %d; it must be positive", s.QueueBytes)
	case s.HeartbeatInterval < 0, s.HeartbeatTimeout < 0, s.SessionGrace < 0, s.ReconnectGrace < 0:
		return errors.New("scheduler: intervals must be positive")
	}
	return nil
}

// maxIDBytes bounds ids of requests, workers, gateways, nodes and tenants.
const maxIDBytes = 128
