package failover

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/store/storetest"
	"github.com/quire-serve/quire/worker"
	"github.com/quire-serve/quire/worker/engine"
)

// TestDrainMovesTheKVCache drains a worker in the middle of a stream with a long context. The stream goes
// on elsewhere as if nothing had been, and where the KV cache can move, less than a block of what was known
// is computed again. The log says how long the stream stood still either way.
func TestDrainMovesTheKVCache(t *testing.T) {
	spec, err := model.Open(storetest.SmolLM2(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = spec.Close() })
	settings := worker.Settings{
		KVBytes: 96 << 20, HandOverTimeout: time.Hour, // it ends by itself
		Engine: engine.Settings{MaxSequences: 8, MaxBatchTokens: 512, PrefixCache: true},
	}
	prompt := strings.Repeat("It was the best of times, it was the worst of times, it was the age of wisdom. ", 71)
	r := request{"story", text, fmt.Sprintf(`{"model":%q,"prompt":%q,"stream":true,"stream_options":{"include_usage":true},"seed":11,"max_tokens":60,"ignore_eos":true}`, spec.ID, prompt)}

	calm := newTape()
	if err := calm.record(t.Context(), startWith(t, spec, 1, 1, settings).doors[0], r, func(int) bool { return false }); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		fetch    int64
		min, max int64 // known tokens that are computed again
	}{
		"moves":    {0, 1, 16},
		"does not": {-1, 1500, 1600},
	} {
		t.Run(name, func(t *testing.T) {
			s := settings
			s.FetchKVBytes = c.fetch
			cluster := startWith(t, spec, 2, 1, s)
			var from, to *workerNode
			p := newTape()
			err := p.record(t.Context(), cluster.doors[0], r, func(n int) bool {
				if n == 20 {
					from, to = cluster.workers[0], cluster.workers[1]
					if from.Stats().Running == 0 {
						from, to = to, from
					}
					from.drain()
					p.gap = 0
				}
				return false
			})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := p.String(), calm.String(); got != want {
				t.Error(differ(got, want))
			}
			st := to.Stats()
			again := st.StepTokens - (st.GeneratedTokens - 1) // the last token is not computed
			t.Logf("%d known tokens were computed again; the stream stood still for %v", again, p.gap)
			if again < c.min || again > c.max || st.FailedFetches != 0 {
				t.Errorf("%d known tokens were computed again, want %d to %d; %d fetches failed", again, c.min, c.max, st.FailedFetches)
			}
			await(t, func() bool {
				select {
				case <-from.ended:
					return true
				default:
					return false
				}
			})
		})
	}
}
