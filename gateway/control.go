package gateway

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
)

const (
	// tryTimeout is how long one node may take to answer. A node that is cut off without a sign must
	// not hold a call that another one could serve; asking twice changes nothing.
	tryTimeout = 2 * time.Second
	// hintsFollowed is how many leaders' addresses a call goes to without a pause.
	hintsFollowed = 2
	// sparedConns is how many connections are kept to nodes that are not on the list (any more): a
	// leader may be named before the list has it.
	sparedConns = 2
)

// dialer connects to a node or worker; the second result closes the connection.
type dialer func(address string) (grpc.ClientConnInterface, func() error, error)

// control speaks to the leader, wherever it is. All its users share what is known of that: it asks
// the node that answered last, goes where a follower points, and else tries one node after the other.
type control struct {
	nodes func() []string
	dial  dialer

	mu     sync.Mutex
	closed bool
	at     string // the node to ask next
	turn   int    // its place, or that of the node to fall back to, among nodes
	conns  map[string]*nodeConn
	// replaced connections end a little later.
	replaced map[*nodeConn]*time.Timer
	// found ends and is replaced when a leader is found.
	found context.Context
	find  context.CancelFunc
}

type nodeConn struct {
	client pb.ControlClient
	conn   grpc.ClientConnInterface
	close  func() error
}

func newControl(nodes func() []string, dial dialer) *control {
	c := &control{nodes: nodes, dial: dial, conns: map[string]*nodeConn{}, replaced: map[*nodeConn]*time.Timer{}}
	c.found, c.find = context.WithCancel(context.Background())
	return c
}

var errClosed = status.Error(codes.Unavailable, "the gateway has stopped")

// pick returns the node to ask.
func (c *control) pick() (address string, client pb.ControlClient, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return "", nil, errClosed
	}
	nodes := c.nodes()
	if c.at == "" {
		if len(nodes) == 0 {
			return "", nil, status.Error(codes.Unavailable, "no control-plane node is known")
		}
		c.at = nodes[c.turn%len(nodes)]
	}
	if n := c.conns[c.at]; n != nil {
		return c.at, n.client, nil
	}
	conn, done, err := c.dial(c.at)
	if err != nil {
		return c.at, nil, status.Errorf(codes.Unavailable, "node %s: %v", c.at, err)
	}
	n := &nodeConn{client: pb.NewControlClient(conn), conn: conn, close: done}
	c.conns[c.at] = n
	c.prune(nodes)
	return c.at, n.client, nil
}

// prune closes connections to nodes that have left, but for a few. The lock is held.
func (c *control) prune(nodes []string) {
	for address, n := range c.conns {
		if len(c.conns) <= len(nodes)+sparedConns {
			return
		}
		if address != c.at && !slices.Contains(nodes, address) {
			_ = n.close() // whatever still runs on it is tried again elsewhere
			delete(c.conns, address)
		}
	}
}

// failed moves on from a node that does not lead, to the one it names if it names one. It reports
// whether there is a fresh address to try at once.
func (c *control) failed(address, hint string) (fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.conns[address]; n != nil {
		// A connection that could not be made waits longer and longer before it tries again; this node
		// may be back by the time its turn comes.
		if r, ok := n.conn.(interface{ ResetConnectBackoff() }); ok {
			r.ResetConnectBackoff()
		}
	}
	if c.at != address {
		return c.at != "" // another call has moved on already
	}
	if hint != "" && hint != address {
		c.at = hint
		return true
	}
	c.turn++
	c.at = ""
	return false
}

// lead notes that a node leads, wakes the calls that wait for one, and cuts those that wait for
// another node's answer.
func (c *control) lead(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.at = address
	c.find()
	c.found, c.find = context.WithCancel(context.Background())
}

// news ends when a leader is found.
func (c *control) news() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.found
}

// cutIfMoved calls cut once news has ended, unless the node to ask is still this one.
func (c *control) cutIfMoved(news context.Context, address string, cut func()) (stop func() bool) {
	return context.AfterFunc(news, func() {
		c.mu.Lock()
		moved := c.at != address
		c.mu.Unlock()
		if moved {
			cut()
		}
	})
}

// refresh has the next call to a silent node make a connection of its own: one that was cut off sends
// again only after TCP's next attempt, seconds after the network is back.
func (c *control) refresh(address string, silent pb.ControlClient) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.conns[address]
	if n == nil || n.client != silent {
		return
	}
	delete(c.conns, address)
	// What else runs on it has as long as the leader may be silent.
	c.replaced[n] = time.AfterFunc(watchSilence, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.replaced, n)
		_ = n.close() // whatever still runs on it is tried again
	})
}

func (c *control) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.conns {
		_ = n.close() // nothing is left to be said on it
	}
	for n, t := range c.replaced {
		t.Stop()
		_ = n.close()
	}
	clear(c.conns)
	clear(c.replaced)
	c.closed = true
	c.find()
}

// ask makes one call to the leader, again and again until it answers or ctx ends, and at once when a leader
// is found. What is asked must
// be safe to ask twice. The error is the last node's.
func ask[Q, A any](ctx context.Context, c *control, q *Q, method func(pb.ControlClient, context.Context, *Q, ...grpc.CallOption) (*A, error)) (*A, error) {
	failures, hints := 0, 0
	for {
		news := c.news()
		address, client, err := c.pick()
		var trailer metadata.MD
		if err == nil {
			var answer *A
			try, cancel := context.WithTimeout(ctx, tryTimeout)
			release := c.cutIfMoved(news, address, cancel)
			answer, err = method(client, try, q, grpc.Trailer(&trailer), grpc.MaxCallRecvMsgSize(transport.MaxAnswer))
			release()
			silent := errors.Is(try.Err(), context.DeadlineExceeded) && ctx.Err() == nil
			cancel()
			if silent {
				c.refresh(address, client)
			}
			if err == nil {
				return answer, nil
			}
			switch status.Code(err) {
			case codes.Unavailable, codes.FailedPrecondition:
				if reasonOf(err) != "" {
					return nil, err // the leader's own word
				}
			case codes.DeadlineExceeded:
				// The node may notice first that the call's time is up; only the leader gives a reason.
				if reasonOf(err) != "" {
					return nil, err // the request's own deadline
				}
				err = status.Errorf(codes.Unavailable, "node %s does not answer", address)
			case codes.Canceled:
				err = status.Errorf(codes.Unavailable, "the call to node %s was cut", address)
			default:
				return nil, err
			}
		}
		if ctx.Err() != nil || errors.Is(err, errClosed) {
			return nil, err
		}
		if c.failed(address, transport.Leader(trailer)) && hints < hintsFollowed {
			hints++
			continue
		}
		if !transport.ToLeader.Wait(ctx, failures, news.Done()) {
			return nil, err
		}
		failures, hints = failures+1, 0
	}
}
