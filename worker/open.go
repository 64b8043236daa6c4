package worker

import (
	"bufio"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine"
)

// New makes a worker that serves m on dev, where it is loaded: it allocates the KV cache, compiles
// the forward pass and listens, so that what is wrong shows here. Run does the rest. The worker
// closes what it made when Run ends, but neither dev nor m.
func New(s Settings, dev device.Device, m *model.Model) (*Worker, error) {
	s = s.withDefaults()
	if err := s.validate(); err != nil {
		return nil, err
	}
	s.Engine = s.Engine.WithDefaults()
	windowed, window := m.Config.Windowed()
	mixed := windowed < m.Config.Layers
	if window >= m.Context || mixed && s.HostKVBytes > 0 {
		window = 0 // every block is kept
	}
	if window > 0 && s.HostKVBytes > 0 {
		return nil, fmt.Errorf("worker: kv_host_bytes is %d, must be 0 for %s: all its layers have a sliding window", s.HostKVBytes, m.ID)
	}
	layout := m.Config.KVLayout(s.Engine.Blocks, s.Engine.BlockTokens, s.KVType)
	if window > 0 && mixed {
		layout = m.Config.GroupedKVLayout(s.Engine.Blocks, s.Engine.WindowBlocks, s.Engine.BlockTokens, s.KVType)
	}
	if err := s.sizeKV(&layout, dev, m.Context, window); err != nil {
		return nil, err
	}
	s.Engine.Blocks, s.Engine.WindowBlocks = layout.Pages, layout.WindowPages
	s.Engine.Tenants = nil
	for _, name := range s.tenants() {
		s.Engine.Tenants = append(s.Engine.Tenants, engine.Tenant{Name: name, Blocks: int(s.bound(name, int64(layout.Pages)))})
	}
	if err := s.Engine.Validate(); err != nil {
		return nil, err
	}
	pages, err := dev.NewPages(layout)
	if err != nil {
		return nil, fmt.Errorf("worker: KV cache of %d blocks, %d bytes: %w", layout.Pages, layout.Bytes(), err)
	}
	runner, err := dev.Compile(m.Program, pages, s.Engine.Limits())
	if err != nil {
		_ = pages.Close() // the first error says more
		return nil, fmt.Errorf("worker: compile %s: %w", m.ID, err)
	}
	if window > 0 {
		s.FetchKVBytes = -1 // blocks behind the window are gone
	}
	digest := layoutDigest(dev.Info(), m.Digest, layout)
	tiers, disk, err := openTiers(s, digest, m, pages, runner)
	if err != nil {
		_ = runner.Close()
		_ = pages.Close()
		return nil, err
	}
	i := dev.Info()
	var blockServer *blockServer
	var peers *peers
	if tiers != nil && s.servesBlocks() {
		blockServer = newBlockServer(digest, int(layout.PageBytes()))
		peers = newPeers(digest, int(layout.PageBytes()), s.Certificates, s.Logger.With(slog.String("worker", s.ID)))
		tiers.Peers = peers
	}
	w, err := assemble(s, engine.Model{
		Tiers:  tiers,
		Runner: runner, ContextLength: m.Context, Window: window, Vocab: m.Config.Vocab,
		EOS: m.Tokenizer.EOGs(), Stops: engine.TextStops(m.Tokenizer), Special: m.Tokenizer.SpecialID, Spell: m.Tokenizer.Spellings,
		Constrain: engine.Grammars(m.Tokenizer, m.Config.Vocab),
	}, &pb.WorkerInfo{
		Model: m.ID, Device: i.Name + " " + i.Path, ModelPath: m.Path, ModelDigest: m.Digest,
		Arithmetic: i.Arithmetic + ", KV " + layout.Type.String(), Pool: s.Pool,
		Tenants: s.shares(),
	})
	if err != nil {
		if tiers != nil {
			tiers.Cache.Close()
		}
		_ = runner.Close()
		_ = pages.Close()
		return nil, err
	}
	w.closers = []func() error{runner.Close, pages.Close}
	w.blockServer, w.peers = blockServer, peers
	if tiers != nil {
		w.disk, w.costs = disk, tiers.Costs
		w.closers = append(w.closers, func() error { tiers.Cache.Close(); return nil })
	}
	w.log.Info("KV cache", slog.Int("blocks", layout.Pages), slog.Int("window_blocks", layout.WindowPages), slog.Int("block_tokens", layout.BlockTokens),
		slog.Int64("bytes", layout.Bytes()), slog.String("type", layout.Type.String()))
	return w, nil
}

// tenants are those with bounds, in the order of the numbers by which they are known, from 1 on.
func (s Settings) tenants() []string { return slices.Sorted(maps.Keys(s.TenantKV)) }

// shares are the tenants' bounds as the leader and gateways hear of them.
func (s Settings) shares() (out []*pb.TenantShare) {
	for _, t := range s.Engine.Tenants {
		out = append(out, &pb.TenantShare{Tenant: t.Name, Blocks: int32(t.Blocks)})
	}
	return out
}

// bound is what a tenant may hold of total, at least 1.
func (s Settings) bound(tenant string, total int64) int64 {
	return max(1, int64(s.TenantKV[tenant]*float64(total)))
}

// sizeKV fills in how many pages l has, unless the settings say so.
func (s Settings) sizeKV(l *device.KVLayout, dev device.Device, context, window int) error {
	one, sequences := s.Engine.Charge(context, window), s.Engine.MaxSequences
	budget, asked := s.KVBytes, s.KVBytes > 0
	if l.Pages == 0 && !asked {
		budget = freeMemory(dev) / 8
	}
	if l.WindowLayers == 0 {
		if l.Pages == 0 {
			l.Pages = blocks(budget, asked, l.PageBytes(), one, sequences)
		}
		if l.Pages == 0 {
			return fmt.Errorf("worker: kv_bytes is %d, must be at least %d: one block of %d tokens", budget, l.PageBytes(), l.BlockTokens)
		}
		return nil
	}
	// The windowed group needs no more blocks than the first has, for they hold the same tokens, nor than
	// all sequences can come to hold in it. The first gets what is left.
	if l.Pages > 0 {
		if l.WindowPages == 0 {
			l.WindowPages = min(l.Pages, one*sequences)
		}
		return nil
	}
	page, windowPage := l.PageBytes(), l.Group(1).PageBytes()
	l.WindowPages = blocks(budget, asked, page+windowPage, one, sequences)
	if l.WindowPages == 0 {
		return fmt.Errorf("worker: kv_bytes is %d, must be at least %d: one block of %d tokens of each group of layers", budget, page+windowPage, l.BlockTokens)
	}
	l.Pages = blocks(budget-int64(l.WindowPages)*windowPage, asked, page, s.Engine.Charge(context, 0), sequences)
	return nil
}

// blocks is how many blocks of page bytes a budget buys. More than every sequence at its largest, which
// holds one blocks, is waste; less than one such sequence is too little, unless the operator asked for it.
func blocks(budget int64, asked bool, page int64, one, sequences int) int {
	n := min(budget/page, int64(one)*int64(sequences))
	if !asked {
		n = max(n, int64(one))
	}
	return int(min(n, 1<<30))
}

// freeMemory is what the host says is available, or half of what the device has in total.
func freeMemory(dev device.Device) int64 {
	total := dev.Info().MemoryBytes
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return total / 2
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 2 && fields[0] == "MemAvailable:" {
			if kib, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				return min(kib<<10, total)
			}
		}
	}
	return total / 2
}
