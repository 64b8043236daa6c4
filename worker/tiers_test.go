package worker

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/tiny"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine"
)

// serveInTurn runs a worker with the tiny model on the CPU device, gives it one request after the
// other, and returns their tokens, the prompt tokens that came from a cache, and the worker's stats
// at the end.
func serveInTurn(t *testing.T, s Settings, reqs ...*pb.Request) (tokens [][]int32, cached []int32, stats Stats) {
	t.Helper()
	dev, err := cpu.Open(cpu.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	spec, err := model.OpenBytes(tiny.Name, tiny.GGUF())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = spec.Close() }()
	m, err := spec.Load(dev, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l := newLeader(t, 1)
	s.ID, s.Control, s.Logger = "w1", []string{l.address}, slog.New(slog.DiscardHandler)
	w, err := New(s, dev, m)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	session := next(t, l.sessions, "session")
	g := attach(t, &node{Worker: w})
	for i, q := range reqs {
		session.dispatch(t, 1, uint64(i+1), q)
		var out []int32
		for done := false; !done; {
			e := next(t, g.events, "event")
			out = append(out, e.TokenIds...)
			if done = e.RequestDone; done {
				cached = append(cached, e.CachedTokens)
			}
			if e.FinishReason == pb.FinishReason_FINISH_REASON_ERROR {
				t.Errorf("%s: %s", e.RequestId, e.Error)
			}
		}
		tokens = append(tokens, out)
	}
	cancel()
	if err := next(t, ended, "end of Run"); err != nil {
		t.Error(err)
	}
	return tokens, cached, w.Stats()
}

// TestTiersOnTheDevice: with hits from host memory, from disk after a restart, and with damaged
// files, the tiny model says bit for bit what it says undisturbed; and pages of one type are not
// taken for those of another.
func TestTiersOnTheDevice(t *testing.T) {
	for kv, other := range map[device.Type]device.Type{device.F16: device.I8, device.I8: device.F16} {
		t.Run(kv.String(), func(t *testing.T) { testTiersOnTheDevice(t, kv, other) })
	}
}

func testTiersOnTheDevice(t *testing.T, kv, other device.Type) {
	rng := rand.New(rand.NewPCG(7, 7))
	random := func(id string, n int) *pb.Request {
		p := make([]int32, n)
		for i := range p {
			p[i] = 1 + rng.Int32N(200)
		}
		zero := float32(0)
		return &pb.Request{Id: id, GatewayId: "g1", Prompt: p, Sampling: &pb.SamplingParams{MaxTokens: 24, IgnoreEos: true, Temperature: &zero}}
	}
	first := random("first", 100)
	again := &pb.Request{Id: "again", GatewayId: "g1", Prompt: first.Prompt, Sampling: first.Sampling}
	undisturbed, _, _ := serveInTurn(t, Settings{Engine: engine.Settings{Depth: 1}, KVBytes: 1 << 22, KVType: kv}, first)
	want := undisturbed[0]

	s := Settings{
		Engine:      engine.Settings{Blocks: 12, PrefixCache: true},
		HostKVBytes: 64 << 20, DiskKVDir: t.TempDir(), DiskKVBytes: 256 << 20,
		costs: &engine.Costs{}, KVType: kv,
	}
	got, cached, stats := serveInTurn(t, s, first, random("x", 120), random("y", 120), again)
	if !slices.Equal(got[0], want) || !slices.Equal(got[3], want) {
		t.Errorf("with host memory: %v and %v, undisturbed %v", got[0], got[3], want)
	}
	if cached[3] != 96 || stats.Tiers.HostHits != 6 {
		t.Errorf("%d tokens cached, tiers %+v; want 96 tokens in 6 blocks from host memory", cached[3], stats.Tiers)
	}

	got, cached, stats = serveInTurn(t, s, again)
	if !slices.Equal(got[0], want) {
		t.Errorf("from disk: %v, undisturbed %v", got[0], want)
	}
	if cached[0] != 96 || stats.Tiers.DiskHits != 6 {
		t.Errorf("%d tokens cached, tiers %+v, disk %+v; want 96 tokens in 6 blocks from disk", cached[0], stats.Tiers, stats.Disk)
	}

	files := 0
	err := filepath.WalkDir(s.DiskKVDir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".kv") {
			return err
		}
		files++
		raw, err := os.ReadFile(path)
		if err == nil {
			raw[len(raw)/2] ^= 1
			err = os.WriteFile(path, raw, 0o600)
		}
		return err
	})
	if err != nil || files < 6 {
		t.Fatalf("%d files damaged, %v", files, err)
	}
	got, cached, stats = serveInTurn(t, s, again)
	if !slices.Equal(got[0], want) {
		t.Errorf("with damaged files: %v, undisturbed %v", got[0], want)
	}
	if cached[0] != 0 || stats.Disk.Damaged == 0 {
		t.Errorf("%d tokens cached from damaged files, %d of them found", cached[0], stats.Disk.Damaged)
	}

	s.KVType = other
	_, cached, stats = serveInTurn(t, s, again)
	if cached[0] != 0 || stats.Tiers.DiskHits != 0 {
		t.Errorf("%d tokens of %s cached from files of %s", cached[0], other, kv)
	}
}

// TestTierSettings: what does not go together is refused by name.
func TestTierSettings(t *testing.T) {
	base := Settings{ID: "w", Control: []string{"x:1"}, Engine: engine.Settings{PrefixCache: true}}
	for want, edit := range map[string]func(*Settings){
		"kv_host_bytes is -1":                func(s *Settings) { s.HostKVBytes = -1 },
		"kv_host_bytes needs prefix_cache":   func(s *Settings) { s.HostKVBytes = 1 << 20; s.Engine.PrefixCache = false },
		"kv_disk needs kv_host_bytes":        func(s *Settings) { s.DiskKVDir = "d"; s.DiskKVBytes = 1 << 20 },
		"kv_disk_bytes is 0, must be positi": func(s *Settings) { s.HostKVBytes = 1 << 20; s.DiskKVDir = "d" },
	} {
		s := base
		edit(&s)
		if err := s.withDefaults().validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if err := base.withDefaults().validate(); err != nil {
		t.Error(fmt.Errorf("the base is refused: %w", err))
	}
}

// TestMeasure: what the cost model goes by is measured, and a prompt's token is cheaper in company.
func TestMeasure(t *testing.T) {
	s := Settings{Engine: engine.Settings{Blocks: 12, PrefixCache: true}, HostKVBytes: 1 << 20}
	zero := float32(0)
	q := &pb.Request{Id: "a", GatewayId: "g1", Prompt: []int32{1, 2, 3}, Sampling: &pb.SamplingParams{MaxTokens: 3, IgnoreEos: true, Temperature: &zero}}
	_, _, stats := serveInTurn(t, s, q)
	c := stats.Costs
	if c.Page <= 0 || c.Token <= 0 || c.Step <= c.Token {
		t.Errorf("measured %+v", c)
	}
}
