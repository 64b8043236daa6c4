package scheduler

import (
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Scheduler is one control-plane node.
type Scheduler struct {
	pb.UnimplementedControlServer
	settings Settings
}

var _ pb.ControlServer = (*Scheduler)(nil)

// New opens the node's data folder and joins or starts its cluster. The scheduler serves once
// Ready says so.
func New(settings Settings) (*Scheduler, error) {
	settings.setDefaults()
	if err := settings.Validate(); err != nil {
		return nil, err
	}
	return &Scheduler{settings: settings}, nil
}

// Ready says whether this node can admit requests.
func (s *Scheduler) Ready() bool { return false }

// Close stops the node and releases its data folder.
func (s *Scheduler) Close() error { return nil }
