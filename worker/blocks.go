package worker

import (
	"context"
	"fmt"
	"hash/crc32"
	"log/slog"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/kvcache/tier"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const (
	// fetchesServed is how many workers' fetches are served at once; the others wait.
	fetchesServed = 8
	// pieceBytes is the most of a page that goes into one message.
	pieceBytes = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// blockServer knows which of the requests that were handed over nobody has fetched the blocks of yet.
type blockServer struct {
	layout    tier.Layout
	pageBytes int
	slots     chan struct{}

	mu   sync.Mutex
	ctx  context.Context // of serving; nil before
	left map[string]struct{}
	done chan struct{} // closed when none is left
}

func newBlockServer(layout tier.Layout, pageBytes int) *blockServer {
	return &blockServer{layout: layout, pageBytes: pageBytes, slots: make(chan struct{}, fetchesServed), done: make(chan struct{})}
}

// open begins to serve the blocks of requests, until ctx ends.
func (b *blockServer) open(ctx context.Context, requests []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ctx, b.left = ctx, make(map[string]struct{}, len(requests))
	for _, id := range requests {
		b.left[id] = struct{}{}
	}
}

// served is called when a request's blocks were fetched, or tried to be.
func (b *blockServer) served(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.left[id]; !ok {
		return
	}
	if delete(b.left, id); len(b.left) == 0 {
		close(b.done)
	}
}

// serving returns the context of serving, nil before it.
func (b *blockServer) serving() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ctx
}

// serveBlocks hands over what runs and stays until the blocks of all of it were fetched, for
// Settings.HandOverTimeout at most. ctx ends with the engine.
func (w *Worker) serveBlocks(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, w.settings.HandOverTimeout)
	defer cancel()
	if err := w.engine.Freeze(ctx); err != nil {
		w.log.Warn("the engine did not stop in time to hand its KV cache over", slog.Any("error", err))
		return
	}
	requests := w.engine.Live()
	if len(requests) == 0 {
		return
	}
	w.blockServer.open(ctx, requests)
	w.giveBack()
	select {
	case <-w.blockServer.done:
	case <-ctx.Done():
	}
}

// FetchBlocks sends blocks of requests that were handed over; see the service's definition.
func (w *Worker) FetchBlocks(in *pb.FetchBlocksRequest, stream grpc.ServerStreamingServer[pb.FetchBlocksResponse]) error {
	l := w.blockServer
	if l == nil {
		return status.Error(codes.FailedPrecondition, "this worker serves no blocks")
	}
	defer l.served(in.GetRequestId()) // one that is refused will not come back
	switch {
	case len(in.GetHashes())%len(kvcache.Hash{}) != 0:
		return status.Errorf(codes.InvalidArgument, "hashes: %d bytes; a hash has %d", len(in.GetHashes()), len(kvcache.Hash{}))
	case string(in.GetLayout()) != string(l.layout[:]):
		return status.Errorf(codes.FailedPrecondition, "layout: %x, this worker's is %x: the model, the shape of the KV cache, or the kernels are others", in.GetLayout(), l.layout)
	}
	serving := l.serving()
	if serving == nil {
		return status.Error(codes.FailedPrecondition, "this worker has handed nothing over")
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(serving, cancel)()
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	page := make([]byte, l.pageBytes)
	for block, hashes := int32(0), in.GetHashes(); len(hashes) > 0; block, hashes = block+1, hashes[len(kvcache.Hash{}):] {
		found, err := w.engine.ReadBlock(ctx, kvcache.Hash(hashes[:len(kvcache.Hash{})]), page)
		if err != nil {
			return status.FromContextError(err).Err()
		}
		if !found {
			continue
		}
		if err := sendPage(stream, block, page); err != nil {
			return err
		}
	}
	return nil
}

// sendPage sends a page in pieces.
func sendPage(stream grpc.ServerStreamingServer[pb.FetchBlocksResponse], block int32, page []byte) error {
	sum := crc32.Checksum(page, castagnoli)
	for len(page) > 0 {
		m := &pb.FetchBlocksResponse{Block: block, Piece: page[:min(pieceBytes, len(page))]}
		if page = page[len(m.Piece):]; len(page) == 0 {
			m.Checksum = sum
		}
		if err := stream.Send(m); err != nil {
			return fmt.Errorf("block %d: %w", block, err)
		}
	}
	return nil
}
