package consensus

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestPipelineWithoutReaderEnds sends into raft's own pipeline while nobody takes its answers, as raft
// does once one has refused. This is what hashicorp/raft v1.8.0 never gets out of by itself.
func TestPipelineWithoutReaderEnds(t *testing.T) {
	transport := func() *raft.NetworkTransport {
		n := newTransport(OverTCP(listenLoopback(t), ""), hclog.NewNullLogger()).(*raft.NetworkTransport)
		t.Cleanup(func() { _ = n.Close() })
		return n
	}
	peer, own := transport(), transport()
	stop := make(chan struct{})
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		for {
			select {
			case <-stop:
				return
			case rpc := <-peer.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Term: 9}, nil)
			}
		}
	}()
	p, err := newInbox(own, func() error { return nil }).AppendEntriesPipeline("peer", peer.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	p.(*pipeline).stall = 50 * time.Millisecond
	for sent := 0; err == nil; sent++ {
		if sent > 1000 {
			t.Fatal("raft's pipeline does not wait for its reader any more")
		}
		_, err = p.AppendEntries(&raft.AppendEntriesRequest{Term: 1}, &raft.AppendEntriesResponse{})
	}
	if !errors.Is(err, raft.ErrPipelineShutdown) {
		t.Errorf("the send ended with %v", err)
	}
	close(stop)
	<-answered
}
