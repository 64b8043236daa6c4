package gateway

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/roster"
	"github.com/quire-serve/quire/transport"
)

const (
	// firstNews is how long a node may take to send the first news, watchSilence how long the leader
	// may send none; it says every second what there is.
	firstNews    = 2 * time.Second
	watchSilence = 4 * time.Second
)

var (
	errSilent = errors.New("the leader is silent")
	errMoved  = errors.New("another node leads")
)

// watch follows the leader's news until ctx ends. While there is no leader the attachments stay as
// they are: streams do not depend on it.
func (g *Gateway) watch(ctx context.Context) {
	away, failures, hints := false, 0, 0
	var workers roster.View
	for {
		address, told, hint, err := g.follow(ctx, &workers)
		if ctx.Err() != nil {
			return
		}
		if told {
			away, failures, hints = false, 0, 0
		}
		if !away {
			away = true
			g.Log.Warn("the leader's news are away", "node", address, "error", err)
		}
		if g.control.failed(address, hint) && hints < hintsFollowed {
			hints++
			continue
		}
		hints = 0
		if !transport.ToLeader.Wait(ctx, failures, g.control.news().Done()) {
			return
		}
		failures++
	}
}

// copies says which models the gateway has.
func (g *Gateway) copies() (models []*pb.GatewayModel) {
	for _, m := range g.order {
		models = append(models, &pb.GatewayModel{Name: m.ID, Digest: m.Digest})
	}
	return models
}

// follow takes one node's news until they break off. It reports whether there were any, and which
// node leads if this one named it.
func (g *Gateway) follow(ctx context.Context, workers *roster.View) (address string, told bool, leader string, err error) {
	leads := g.control.news()
	address, client, err := g.control.pick()
	if err != nil {
		return address, false, "", err
	}
	// Attachments outlive the stream, so it has a context of its own.
	call, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(firstNews, func() { cancel(errSilent) })
	defer silent.Stop()
	moved := func() { cancel(errMoved) }
	release := g.control.cutIfMoved(leads, address, moved)
	defer func() { release() }()
	stream, err := client.Watch(call, &pb.WatchRequest{GatewayId: g.NodeID, Models: g.copies(), Known: workers.Known()})
	for err == nil {
		var news *pb.WatchResponse
		if news, err = stream.Recv(); err != nil {
			if status.Code(err) != codes.Canceled {
				leader = transport.Leader(stream.Trailer())
			}
			break
		}
		silent.Reset(watchSilence)
		if !told {
			told = true
			release()
			g.control.lead(address)
			release = g.control.cutIfMoved(g.control.news(), address, moved)
			g.Log.Info("following the leader", "node", address)
		}
		if news.Queued != nil {
			g.queued.Store(news.Queued)
		}
		if news.Unserved != nil {
			g.unserved.Store(news.Unserved)
			g.updateReady()
		}
		var came []*pb.WorkerInfo
		var left []string
		if came, left, err = workers.Apply(news.Workers); err != nil {
			break
		}
		g.updateWorkers(ctx, came, left)
		for _, id := range news.Adopted {
			g.movedAway(id)
		}
		g.lost(call, client, news.Lost)
		g.owned(call, news.Owned)
		for _, ended := range news.Ended {
			g.ended(ended)
		}
	}
	if cause := context.Cause(call); errors.Is(cause, errSilent) || errors.Is(cause, errMoved) {
		err = cause
	}
	return address, told, leader, err
}
