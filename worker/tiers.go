package worker

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"time"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/kvcache/tier"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/worker/engine"
)

// kvNumbers is part of what a block file must agree with. Raise it when a change of the forward pass
// changes the numbers that a page holds.
const kvNumbers = 1

// openTiers makes what is below the device's KV cache, or nil if the settings want nothing there. Where
// there is no tier in host memory, blocks of other workers still come by way of it.
func openTiers(s Settings, layout tier.Layout, m *model.Model, pages device.Pages, runner device.Runner) (*engine.Tiers, *tier.Disk, error) {
	room := s.HostKVBytes
	if room == 0 && s.servesBlocks() {
		room = s.FetchKVBytes
	}
	shape := pages.Layout()
	page := shape.PageBytes()
	switch {
	case s.HostKVBytes == 0 && room < page:
		return nil, nil, nil
	case room < page:
		return nil, nil, fmt.Errorf("worker: kv_host_bytes is %d, must be 0 or at least %d: one block of %d tokens", s.HostKVBytes, page, shape.BlockTokens)
	}
	var costs engine.Costs
	var err error
	if s.costs != nil {
		costs = *s.costs
	} else {
		costs, err = measure(runner, pages, s.Engine, m.Context)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("worker: measure the device: %w", err)
	}
	// Tenant 0 is everybody without a bound.
	hostPages, diskBytes := []int{0}, []int64{0}
	for _, name := range s.tenants() {
		hostPages = append(hostPages, int(s.bound(name, room/page)))
		diskBytes = append(diskBytes, s.bound(name, s.DiskKVBytes))
	}
	var disk *tier.Disk
	if s.DiskKVDir != "" {
		disk, err = tier.OpenDisk(tier.DiskSettings{
			Dir: s.DiskKVDir, PageBytes: int(page), Layout: layout, MaxBytes: s.DiskKVBytes,
			TenantBytes: diskBytes,
		})
		if err != nil {
			return nil, nil, fmt.Errorf("worker: kv_disk: %w", err)
		}
	}
	cache, err := tier.New(tier.Settings{PageBytes: int(page), Pages: int(min(room/page, 1<<30)), TenantPages: hostPages, Disk: disk})
	if err != nil {
		return nil, nil, fmt.Errorf("worker: kv_host: %w", err)
	}
	s.Logger.Info("KV tiers", slog.Int64("host_blocks", s.HostKVBytes/page), slog.String("disk", s.DiskKVDir),
		slog.Duration("copy_block", costs.Page), slog.Duration("compute_token", costs.Token), slog.Duration("step", costs.Step))
	return &engine.Tiers{Cache: cache, Transit: s.HostKVBytes == 0, Pages: pages, Costs: costs}, disk, nil
}

// servesBlocks reports whether blocks may move from worker to worker.
func (s Settings) servesBlocks() bool { return s.Engine.PrefixCache && s.FetchKVBytes > 0 }

// layoutDigest tells apart pages of the same tokens whose bytes are not the same: of other weights, another
// shape, another order of bytes, or another rounding. Which device holds them, and which kernels computed
// them, says nothing of the bytes.
func layoutDigest(i device.Info, weights string, l device.KVLayout) (d tier.Layout) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %q %q %q %d %d %d %d %v", kvNumbers, weights, i.PageFormat, i.Arithmetic,
		l.BlockTokens, l.Layers, l.KVHeads, l.HeadDim, l.Type))
	copy(d[:], sum[:])
	return d
}

// measureRows is how many prompt tokens measure computes at once.
const measureRows = 64

// measure times the device before anything else uses it: copies of a page, a step of prompt tokens,
// a step of one. Of several runs the fastest counts.
func measure(runner device.Runner, pages device.Pages, s engine.Settings, context int) (c engine.Costs, err error) {
	l := pages.Layout()
	rows := min(measureRows, s.MaxBatchTokens, context, l.Pages*l.BlockTokens)
	buffer := make([]byte, l.PageBytes())
	c.Page, err = fastest(8, func() error {
		if err := pages.Read(0, buffer); err != nil {
			return err
		}
		return pages.Write(0, buffer)
	})
	c.Page /= 2
	if err != nil {
		return c, err
	}
	step := func(rows int) func() error {
		b := device.Batch{
			Tokens: make([]int32, rows), Positions: make([]int32, rows), Tables: make([]int32, (rows+l.BlockTokens-1)/l.BlockTokens),
			Seqs:    []device.Seq{{Rows: int32(rows), Context: int32(rows)}},
			Samples: []device.Sample{{Row: int32(rows - 1), Score: -1, TopP: 1, RepetitionPenalty: 1, Mask: -1, Logprobs: -1, Position: int32(rows)}},
		}
		for i := range b.Positions {
			b.Positions[i] = int32(i)
		}
		for i := range b.Tables {
			b.Tables[i] = int32(i)
		}
		return func() error {
			if err := runner.Submit(&b); err != nil {
				return err
			}
			var r device.Result
			return runner.Wait(&r)
		}
	}
	prefill, err := fastest(3, step(rows))
	if err != nil {
		return c, err
	}
	c.Token = prefill / time.Duration(rows)
	c.Step, err = fastest(3, step(1))
	return c, err
}

// fastest runs f n times and returns the shortest time that it took, at least a nanosecond.
func fastest(n int, f func() error) (best time.Duration, err error) {
	for range n {
		began := time.Now()
		if err := f(); err != nil {
			return 0, err
		}
		if d := max(time.Since(began), 1); best == 0 || d < best {
			best = d
		}
	}
	return best, nil
}
