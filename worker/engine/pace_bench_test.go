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
// 7,000 tokens is computed beside them, their longest pause, and how long the prompt takes. Run it with
// -benchtime 1x.
func BenchmarkBesideALongPrompt(b *testing.B) {
	for _, share := range []float64{-1, 0.5, 0.8, 0.9} {
		b.Run(fmt.Sprintf("decode-share=%v", share), func(b *testing.B) {
			for range b.N {
				besideALongPrompt(b, share)
			}
		})
	}
}

func besideALongPrompt(b *testing.B, share float64) {
	const streams, tokens, window = 4, 7000, 5 * time.Second
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
	s := Settings{Blocks: (streams + 1) * m.Context / 16, DecodeShare: share, PrefixCache: true, Logger: quiet()}.WithDefaults()
	pages, err := dev.NewPages(m.Config.KVLayout(s.Blocks, s.BlockTokens, device.F16))
	if err != nil {
		b.Fatal(err)
	}
	defer pages.Close()
	runner, err := dev.Compile(m.Program, pages, s.Limits())
	if err != nil {
		b.Fatal(err)
	}
	defer runner.Close()
	var mu sync.Mutex
	var at []time.Time // of the streams' tokens
	done := make(chan time.Time, 1)
	e, err := New(s, Model{Runner: runner, ContextLength: m.Context, Vocab: m.Config.Vocab}, func(events []Event) {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range events {
			if e.RequestID == "long" {
				done <- time.Now()
				continue
			}
			for range e.Tokens {
				at = append(at, time.Now())
			}
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	for i := range streams {
		if err := e.Add(ask(fmt.Sprint(i), prompt(i, 100), 0)); err != nil {
			b.Fatal(err)
		}
	}
	rate := func(from, to time.Time) (rate float64, pause time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		n, last := 0, from
		for _, t := range at {
			if t.After(from) && !t.After(to) {
				n++
				pause, last = max(pause, t.Sub(last)), t
			}
		}
		return float64(n) / to.Sub(from).Seconds(), pause
	}
	<-time.After(window)
	from := time.Now()
	<-time.After(window)
	before, _ := rate(from, time.Now())
	began := time.Now()
	if err := e.Add(ask("long", prompt(100, tokens), 1)); err != nil {
		b.Fatal(err)
	}
	first := <-done
	beside, pause := rate(began, first)
	from = time.Now()
	<-time.After(window)
	after, _ := rate(from, time.Now())
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric((before+after)/2, "alone-tokens/s")
	b.ReportMetric(beside/((before+after)/2), "share")
	b.ReportMetric(float64(pause.Milliseconds()), "pause-ms")
	b.ReportMetric(first.Sub(began).Seconds(), "prompt-s")
}
