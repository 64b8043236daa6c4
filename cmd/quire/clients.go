package main

import (
	"context"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// clients counts the streams of gRPC clients, which a shutdown lets finish.
type clients struct {
	// opened is closed once the node serves clients.
	opened chan struct{}

	mu       sync.Mutex
	running  int
	draining bool
	empty    chan struct{} // closed when draining and none runs
}

func (c *clients) intercept(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if !strings.HasPrefix(info.FullMethod, "/"+pb.Inference_ServiceDesc.ServiceName+"/") {
		return handler(srv, stream)
	}
	if !c.enter() {
		return status.Error(codes.Unavailable, "this node is shutting down")
	}
	defer c.leave()
	select {
	case <-c.opened:
	case <-stream.Context().Done():
		return status.FromContextError(stream.Context().Err()).Err()
	}
	return handler(srv, stream)
}

func (c *clients) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return false
	}
	c.running++
	return true
}

func (c *clients) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	if c.draining && c.running == 0 {
		close(c.empty)
	}
}

// drain refuses new streams and waits for the running ones, until ctx ends.
func (c *clients) drain(ctx context.Context) error {
	c.mu.Lock()
	c.draining, c.empty = true, make(chan struct{})
	if c.running == 0 {
		close(c.empty)
	}
	c.mu.Unlock()
	select {
	case <-c.empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
