package engine

import (
	"fmt"
	"testing"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/worker/engine/enginetest"
	"github.com/quire-serve/quire/worker/engine/pace"
)

// roofline is what a step costs on a device that has flops and bandwidth for a model of eight thousand
// million parameters, in microseconds: weights and KV are read once a step, rows are computed, and
// what takes longer counts. With the figures of an H100 a step of 16 streams takes 5 ms, most of it for
// reading the weights.
func roofline(bandwidth, flops float64) func(*device.Batch) int64 {
	const params, layers, width, kvBytes = 8e9, 32, 4096, 131072 // a token's keys and values
	return func(b *device.Batch) int64 {
		read, work := 2*params, 2*params*float64(len(b.Tokens))
		for _, s := range b.Seqs {
			read += kvBytes * float64(s.Context)
			work += 4 * layers * width * float64(s.Rows) * (float64(s.Context) - float64(s.Rows)/2)
		}
		return int64(100 + 1e6*max(read/bandwidth, work/flops))
	}
}

// streams is a rig in which n requests stream, each with 20 tokens so far, before prompts of so many
// tokens come.
func streams(t tb, s Settings, n int, cost func(*device.Batch) int64, prompts []int) *rig {
	s.MaxSequences, s.BlockTokens, s.PrefixCache, s.MaxBatchTokens = 64, 16, true, 2048
	s.Blocks = 1024 * n
	for _, tokens := range prompts {
		s.Blocks += tokens/16 + 2
	}
	r := newRig(t, s, func(c *enginetest.Config, m *Model) {
		m.ContextLength = 1 << 17
		c.Token = func([]int32, device.Sample) int32 { return 7 }
	})
	r.cost = cost
	for i := range n {
		r.add(ask(fmt.Sprint("stream", i), prompt(i, 200), 0))
	}
	for r.streamed(n) < 20*n {
		r.step()
	}
	return r
}

// streamed is how many tokens n streams have together.
func (r *rig) streamed(n int) (tokens int) {
	for i := range n {
		if h := r.got[key(fmt.Sprint("stream", i), 0)]; h != nil {
			tokens += len(h.tokens)
		}
	}
	return tokens
}

// beside lets prompts arrive where n requests stream, until the last has its first token. It returns the
// streams' rate as a share of what they would have had alone, their longest pause and how long the
// prompts took, both in microseconds.
func beside(t tb, s Settings, n int, cost func(*device.Batch) int64, prompts ...int) (share float64, pause, took int64) {
	r := streams(t, s, n, cost, prompts)
	began := r.now
	for i, tokens := range prompts {
		r.add(ask(fmt.Sprint("prompt", i), prompt(1000+i, tokens), 1))
	}
	last, lastAt := r.streamed(n), r.now
	for ended := 0; ended < len(prompts); {
		r.step()
		if tokens := r.streamed(n); tokens > last {
			pause = max(pause, r.now-lastAt)
			last, lastAt = tokens, r.now
		}
		ended = 0
		for i := range prompts {
			if r.got[key(fmt.Sprint("prompt", i), 0)] != nil {
				ended++
			}
		}
	}
	took = r.now - began
	r = streams(t, s, n, cost, prompts)
	began = r.now
	for r.streamed(n) < last {
		r.step()
	}
	return float64(r.now-began) / float64(took), pause, took
}

// devices are rooflines that differ in what prompts cost beside decodes: on the first many rows are
// free, on the second each is dear from the first on.
var devices = map[string]func(*device.Batch) int64{
	"H100":  roofline(3.35e12, 600e12),
	"a CPU": roofline(300e9, 1e12),
}

// TestDecodesAreProtected: beside a prompt of 65,535 tokens streams keep the share of their rate that
// the settings promise, and the prompt gets the rest.
func TestDecodesAreProtected(t *testing.T) {
	for _, c := range []struct {
		share   float64
		streams int
	}{{0.8, 1}, {0.8, 16}, {0.5, 4}, {0.9, 4}} {
		got, pause, took := beside(t, Settings{DecodeShare: c.share}, c.streams, devices["H100"], 65535)
		if got < c.share-0.002 || got > c.share+0.05 {
			t.Errorf("%+v: %.3f of their rate", c, got)
		}
		if pause > 2*pace.MaxPause {
			t.Errorf("%+v: a pause of %d µs", c, pause)
		}
		t.Logf("%+v: %.3f of their rate, longest pause %d µs, prompt in %d ms", c, got, pause, took/1000)
	}
	got, pause, took := beside(t, Settings{DecodeShare: 0.8}, 4, devices["a CPU"], 1000)
	if got < 0.798 || got > 0.9 || pause > 500_000 {
		t.Errorf("on a slow device: %.3f of their rate, a pause of %d µs", got, pause)
	}
	t.Logf("a CPU, 4 streams: %.3f of their rate, longest pause %d µs, prompt of 1,000 in %d ms", got, pause, took/1000)
	got, pause, took = beside(t, Settings{DecodeShare: -1}, 16, devices["H100"], 65535)
	if got > 0.5 {
		t.Errorf("without protection: %.3f of their rate: the test measures nothing", got)
	}
	t.Logf("H100, 16 streams, no protection: %.3f of their rate, longest pause %d µs, prompt in %d ms", got, pause, took/1000)
}

// TestShortPromptsPass: beside a long prompt, and beside streams, a short one is computed at once.
func TestShortPromptsPass(t *testing.T) {
	for name, cost := range devices {
		r := newRig(t, Settings{Blocks: 10_000, MaxSequences: 8, MaxBatchTokens: 512, DecodeShare: 0.8}, func(c *enginetest.Config, m *Model) {
			m.ContextLength = 1 << 17
			c.Token = func([]int32, device.Sample) int32 { return 7 }
		})
		r.cost = cost
		unit := cost(&device.Batch{Tokens: make([]int32, 1)})
		r.add(ask("stream", prompt(1, 10), 0))
		for range 100 {
			r.step()
		}
		r.add(ask("long", prompt(2, 60_000), 1))
		for range 100 {
			r.step()
		}
		began := r.now
		r.add(ask("short", prompt(3, 40), 1))
		for r.got["short/0"] == nil {
			r.step()
		}
		if took := r.now - began; took > 60*unit {
			t.Errorf("%s: the short prompt took %d µs, a step takes %d", name, took, unit)
		}
		// Without streams too.
		r = newRig(t, Settings{Blocks: 10_000, MaxSequences: 8, MaxBatchTokens: 512}, func(_ *enginetest.Config, m *Model) { m.ContextLength = 1 << 17 })
		r.add(ask("long", prompt(2, 60_000), 1))
		r.step()
		r.add(ask("short", prompt(3, 40), 1))
		for range 4 {
			r.step()
		}
		if r.got["short/0"] == nil || r.got["long/0"] != nil {
			t.Error("the short prompt waits for the long one")
		}
	}
}

// TestManyWaitingPrompts: where more requests wait than stream, prompts get more than their share, so
// that a batch fills.
func TestManyWaitingPrompts(t *testing.T) {
	_, _, one := beside(t, Settings{DecodeShare: 0.8}, 1, devices["a CPU"], 1000)
	many := []int{1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000}
	_, _, eight := beside(t, Settings{DecodeShare: 0.8}, 1, devices["a CPU"], many...)
	if eight > 4*one {
		t.Errorf("eight prompts took %d µs beside one stream, one took %d", eight, one)
	}
	t.Logf("eight prompts %d ms, one %d ms", eight/1000, one/1000)
}

// besideShorts is how long a prompt of so many tokens takes, in microseconds, beside so many clients that each
// ask for output tokens after a prompt of size again and again, and how often they were answered.
// If it is behind it began before them, and they come before it in the order.
func besideShorts(t *testing.T, tokens, clients, size, output int, behind bool, cost func(*device.Batch) int64) (took int64, answers int) {
	r := newRig(t, Settings{Blocks: 16_384, MaxSequences: 64, MaxBatchTokens: 512, DecodeShare: 0.8}, func(c *enginetest.Config, m *Model) {
		m.ContextLength = 1 << 16
		c.Token = func([]int32, device.Sample) int32 { return 7 }
	})
	r.cost = cost
	short := func(client int) {
		r.add(ask(fmt.Sprint(client, " ", r.number), prompt(client, size), output))
	}
	longPrompt := prompt(1000, tokens)
	if behind {
		q := ask("long", longPrompt, 1)
		q.Priority = 1
		r.add(q)
		r.step()
	}
	for i := range clients {
		short(i)
	}
	long := func() *heard { return r.got["long/0"] }
	began := int64(0)
	if behind {
		began = r.now
	}
	for long() == nil {
		if answers >= 3*clients && began == 0 {
			began = r.now
			r.add(ask("long", longPrompt, 1))
		}
		done := len(r.log)
		r.step()
		took = r.now - began
		for _, id := range r.log[done:] {
			if id != "long" {
				client := 0
				fmt.Sscan(id, &client)
				short(client)
				answers++
			}
		}
		if began > 0 && took > 1e9 {
			break // a thousand seconds
		}
	}
	return took, answers
}

// TestLongPromptsGetTheirShare: beside closed-loop clients with short prompts a long one takes no
// longer than with an equal share of the device.
func TestLongPromptsGetTheirShare(t *testing.T) {
	const tokens, clients = 20_000, 31
	for name, cost := range map[string]func(*device.Batch) int64{
		"by the row": func(b *device.Batch) int64 { return 2000 + 100*int64(len(b.Tokens)) },
		"H100":       devices["H100"],
	} {
		alone, _ := besideShorts(t, tokens, 0, 200, 1, false, cost)
		for _, output := range []int{1, 4, 16, 64} {
			for _, behind := range []bool{false, true} {
				size := 200
				if behind {
					size = 1000 // takes several steps itself
				}
				took, answers := besideShorts(t, tokens, clients, size, output, behind, cost)
				t.Logf("%s, %d tokens of output, behind %v: %.1f s, alone %.2f s, %d answers", name, output, behind, float64(took)/1e6, float64(alone)/1e6, answers)
				if took > (clients+1)*alone {
					t.Errorf("%s, %d tokens of output, behind %v: the prompt takes %.1f s, an equal share is %.1f s", name, output, behind, float64(took)/1e6, float64(clients+1)*float64(alone)/1e6)
				}
			}
		}
	}
}
