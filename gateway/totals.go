package gateway

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Workers count from the start of their process on. A counter of all workers must not go back when one
// leaves or begins anew, because whoever reads it takes that for a start of the gateway and counts everything
// a second time. So the gateway adds up what each of its workers' counters grew by.

// workerCounters are the counters of a worker, by the metric that adds them up.
var workerCounters = []struct {
	desc *prometheus.Desc
	of   func(*pb.WorkerStats) *int64
}{
	{counterOf("quire_prefix_cache_query_tokens_total", "Prompt tokens looked up in prefix caches."), func(s *pb.WorkerStats) *int64 { return &s.PrefixQueryTokens }},
	{counterOf("quire_prefix_cache_hit_tokens_total", "Prompt tokens found in prefix caches."), func(s *pb.WorkerStats) *int64 { return &s.PrefixHitTokens }},
	{counterOf("quire_prefix_cache_short_tokens_total", "Prompt tokens looked up in prefix caches of prompts shorter than a KV block, which no cache keeps."), func(s *pb.WorkerStats) *int64 { return &s.PrefixShortTokens }},
	{counterOf("quire_preemptions_total", "Requests put back for want of blocks."), func(s *pb.WorkerStats) *int64 { return &s.Preemptions }},
	{counterOf("quire_kv_host_hit_tokens_total", "Tokens whose KV was copied up from host memory."), func(s *pb.WorkerStats) *int64 { return &s.HostHitTokens }},
	{counterOf("quire_kv_disk_hit_tokens_total", "Tokens whose KV was copied up from disk."), func(s *pb.WorkerStats) *int64 { return &s.DiskHitTokens }},
	{counterOf("quire_kv_peer_hit_tokens_total", "Tokens whose KV came from a worker that handed their request over."), func(s *pb.WorkerStats) *int64 { return &s.PeerHitTokens }},
	{counterOf("quire_kv_failed_fetches_total", "Fetches from another worker that failed or took too long."), func(s *pb.WorkerStats) *int64 { return &s.FailedFetches }},
	{counterOf("quire_kv_disk_damaged_total", "Block files that were damaged and dropped."), func(s *pb.WorkerStats) *int64 { return &s.DiskDamaged }},
	{counterOf("quire_swaps_total", "Preemptions that count on copying blocks back."), func(s *pb.WorkerStats) *int64 { return &s.Swaps }},
	{counterOf("quire_requests_returned_total", "Preempted requests handed back to the leader."), func(s *pb.WorkerStats) *int64 { return &s.Returned }},
	{counterOf("quire_drafts_total", "Steps of choices that guessed tokens ahead."), func(s *pb.WorkerStats) *int64 { return &s.Drafts }},
	{counterOf("quire_draft_tokens_total", "Tokens guessed ahead."), func(s *pb.WorkerStats) *int64 { return &s.DraftTokens }},
	// A histogram's sides, told as one.
	{nil, func(s *pb.WorkerStats) *int64 { return &s.Steps }},
	{nil, func(s *pb.WorkerStats) *int64 { return &s.StepTokens }},
}

func counterOf(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, modelLabel, nil)
}

// maxTotals bounds the workers whose last word is kept; above it those that are gone are forgotten, and count
// from their start on when they come back.
const maxTotals = 16384

// totals are the counters of all workers there have been.
type totals struct {
	mu   sync.Mutex
	last map[source]*pb.WorkerStats
	sums map[string]*pb.WorkerStats // by model; counters alone are set
}

// source is a worker that serves a model.
type source struct{ worker, model string }

// take adds what a worker's counters grew by. Where one of them went back the worker has begun anew.
func (t *totals) take(from source, s *pb.WorkerStats, attached func(worker string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last, t.sums = map[source]*pb.WorkerStats{}, map[string]*pb.WorkerStats{}
	}
	last := t.last[from]
	for _, c := range workerCounters {
		if last != nil && *c.of(s) < *c.of(last) {
			last = nil
		}
	}
	if last == nil {
		last = &pb.WorkerStats{}
	}
	if t.sums[from.model] == nil {
		t.sums[from.model] = &pb.WorkerStats{}
	}
	sum := t.sums[from.model]
	for _, c := range workerCounters {
		*c.of(sum) += *c.of(s) - *c.of(last)
	}
	for i, n := range s.AcceptedDraftTokens {
		if i == len(sum.AcceptedDraftTokens) {
			sum.AcceptedDraftTokens = append(sum.AcceptedDraftTokens, 0)
		}
		if i < len(last.AcceptedDraftTokens) {
			n -= last.AcceptedDraftTokens[i]
		}
		sum.AcceptedDraftTokens[i] += max(n, 0)
	}
	if len(t.last) >= maxTotals && t.last[from] == nil {
		for old := range t.last {
			if !attached(old.worker) {
				delete(t.last, old)
			}
		}
	}
	t.last[from] = s
}

// of are a model's counters.
func (t *totals) of(model string) *pb.WorkerStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := &pb.WorkerStats{}
	if sum := t.sums[model]; sum != nil {
		for _, c := range workerCounters {
			*c.of(out) = *c.of(sum)
		}
		out.AcceptedDraftTokens = append(out.AcceptedDraftTokens, sum.AcceptedDraftTokens...)
	}
	return out
}
