package engine

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/store/storetest"
)

// BenchmarkBesideALongPrompt measures what 4 streams of SmolLM2 keep of their rate while a prompt of
// 7,000 tokens is computed beside them, their longest pause, and how long the prompt takes. Alone is
// the same streams computing the same tokens without the prompt, so that contexts are as long: a step
// takes twice as long at the end. Run it with -benchtime 1x; it takes five minutes.
func BenchmarkBesideALongPrompt(b *testing.B) {
	spec, err := model.Open(storetest.SmolLM2(b))
	if err != nil {
		b.Fatal(err)
	}
	defer spec.Close()
	dev, err := cpu.Open(cpu.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer dev.Close()
	m, err := spec.Load(dev, model.LoadOptions{})
	if err != nil {
		b.Fatal(err)
	}
	for _, share := range []float64{-1, 0.5, 0.8} {
		b.Run(fmt.Sprintf("decode-share=%v", share), func(b *testing.B) {
			for range b.N {
				besideALongPrompt(b, dev, m, share)
			}
		})
	}
}

func besideALongPrompt(b *testing.B, dev device.Device, m *model.Model, share float64) {
	const before = 2000 // tokens that the streams have when the prompt comes
	beside := startStreams(b, dev, m, share)
	beside.await(before)
	began := time.Now()
	if err := beside.Add(ask("long", prompt(100, 7000), 1)); err != nil {
		b.Fatal(err)
	}
	took := (<-beside.long).Sub(began)
	times := beside.stop()
	alone := startStreams(b, dev, m, share)
	alone.await(len(times))
	same := alone.stop()[before-1 : len(times)]
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(len(same)-1)/same[len(same)-1].Sub(same[0]).Seconds(), "alone-tokens/s")
	b.ReportMetric(same[len(same)-1].Sub(same[0]).Seconds()/times[len(times)-1].Sub(times[before-1]).Seconds(), "share")
	pause := time.Duration(0)
	for i, at := range times[before:] {
		pause = max(pause, at.Sub(times[before+i-1]))
	}
	b.ReportMetric(float64(pause.Milliseconds()), "pause-ms")
	b.ReportMetric(took.Seconds(), "prompt-s")
}

// streaming is an engine in which 4 requests stream.
type streaming struct {
	*Engine
	long chan time.Time // the first token of the request of this name; what comes later is not kept
	stop func() []time.Time

	mu    sync.Mutex
	more  *sync.Cond
	times []time.Time // of the streams' tokens
	ended bool
}

func startStreams(b *testing.B, dev device.Device, m *model.Model, share float64) *streaming {
	const streams = 4
	s := Settings{Blocks: (streams + 1) * m.Context / 16, DecodeShare: share, PrefixCache: true, Logger: quiet()}.WithDefaults()
	pages, err := dev.NewPages(m.Config.KVLayout(s.Blocks, s.BlockTokens, device.F16))
	if err != nil {
		b.Fatal(err)
	}
	runner, err := dev.Compile(m.Program, pages, s.Limits())
	if err != nil {
		b.Fatal(err)
	}
	l := &streaming{long: make(chan time.Time, 1)}
	l.more = sync.NewCond(&l.mu)
	l.Engine, err = New(s, Model{Runner: runner, ContextLength: m.Context, Vocab: m.Config.Vocab}, l.take)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	l.stop = func() []time.Time {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		runner.Close()
		pages.Close()
		return l.times
	}
	for i := range streams {
		if err := l.Add(ask(fmt.Sprint(i), prompt(i, 100), 0)); err != nil {
			b.Fatal(err)
		}
	}
	return l
}

func (l *streaming) take(events []Event) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		if e.RequestID == "long" {
			l.ended = true
			l.long <- now
			continue
		}
		for range e.Tokens {
			if !l.ended {
				l.times = append(l.times, now)
			}
		}
	}
	l.more.Broadcast()
}

// await waits until the streams have so many tokens.
func (l *streaming) await(tokens int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.times) < tokens {
		l.more.Wait()
	}
}
