package worker

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/kvcache/tier"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
	"github.com/quire-serve/quire/worker/engine"
)

const (
	// fetchTimeout bounds a fetch, however long computing would take.
	fetchTimeout = 5 * time.Second
	// fetchWindow is how much of a fetch may be under way before the receiver has taken it.
	fetchWindow = 4 << 20
)

var errDamagedPage = errors.New("a page that another worker sent is damaged")

// peers fetches blocks from workers that handed requests over. A fetch that fails costs the time to
// compute what it did not bring, and nothing else.
type peers struct {
	layout    tier.Layout
	pageBytes int
	// certificates prove who this worker is.
	certificates *trust.Certificates
	log          *slog.Logger
	ctx          context.Context // ends all fetches
	stop         context.CancelFunc
	flying       sync.WaitGroup
	failed       atomic.Int64
}

var _ engine.Peers = (*peers)(nil)

func newPeers(layout tier.Layout, pageBytes int, certificates *trust.Certificates, log *slog.Logger) *peers {
	p := &peers{layout: layout, pageBytes: pageBytes, certificates: certificates, log: log}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// close ends what is under way and waits for it.
func (p *peers) close() {
	p.stop()
	p.flying.Wait()
}

// Fetch implements [engine.Peers].
func (p *peers) Fetch(f engine.Fetch, done func(whole []bool)) {
	p.flying.Go(func() {
		whole := make([]bool, len(f.Hashes))
		limit := fetchTimeout
		if f.Within > 0 {
			limit = min(limit, f.Within)
		}
		ctx, cancel := context.WithTimeout(p.ctx, limit)
		defer cancel()
		if err := p.fetch(ctx, f, whole); err != nil && len(f.Hashes) > 0 {
			p.failed.Add(1)
			p.log.Warn("fetching blocks failed; what is missing is computed", slog.String("request", f.RequestID), slog.String("source", f.Source), slog.Int("wanted", len(f.Hashes)), slog.Any("error", err))
		}
		done(whole)
	})
}

// fetch fills pages and marks those that are whole.
func (p *peers) fetch(ctx context.Context, f engine.Fetch, whole []bool) error {
	conn, err := transport.Dial(p.certificates, f.Source, transport.Expected{Role: trust.Worker},
		grpc.WithInitialWindowSize(fetchWindow), grpc.WithInitialConnWindowSize(fetchWindow))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is left to be said on it
	in := &pb.FetchBlocksRequest{RequestId: f.RequestID, Layout: p.layout[:], Hashes: make([]byte, 0, len(f.Hashes)*len(kvcache.Hash{}))}
	for _, h := range f.Hashes {
		in.Hashes = append(in.Hashes, h[:]...)
	}
	stream, err := pb.NewWorkerClient(conn).FetchBlocks(ctx, in)
	if err != nil {
		return err
	}
	block, filled := -1, 0
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && filled == 0:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("%w: block %d ends after %d bytes of %d", errDamagedPage, block, filled, p.pageBytes)
		case err != nil:
			return err
		}
		switch n := int(m.GetBlock()); {
		case filled == 0 && n > block && n < len(f.Pages):
			block = n
		case filled == 0 || n != block:
			return fmt.Errorf("%w: a piece of block %d after block %d, %d were asked for", errDamagedPage, n, block, len(f.Pages))
		}
		page := f.Pages[block]
		if len(m.GetPiece()) == 0 || len(m.GetPiece()) > len(page)-filled {
			return fmt.Errorf("%w: block %d has a piece of %d bytes after %d of %d", errDamagedPage, block, len(m.GetPiece()), filled, len(page))
		}
		if filled += copy(page[filled:], m.GetPiece()); filled < len(page) {
			continue
		}
		if sum := crc32.Checksum(page, castagnoli); sum != m.GetChecksum() {
			return fmt.Errorf("%w: block %d has the checksum %08x, not %08x", errDamagedPage, block, sum, m.GetChecksum())
		}
		whole[block], filled = true, 0
	}
}
