//go:build unix

package engine

import (
	"fmt"
	"testing"
	"time"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/store/storetest"
)

// BenchmarkSpeculation measures what a token of SmolLM2 costs with and without drafts, in processor
// time on one thread, so that other programs on the machine count for little. Run it with
// -benchtime 1x.
func BenchmarkSpeculation(b *testing.B) {
	spec, err := model.Open(storetest.SmolLM2(b))
	if err != nil {
		b.Fatal(err)
	}
	defer spec.Close()
	dev, err := cpu.Open(cpu.Options{Threads: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer dev.Close()
	m, err := spec.Load(dev, model.LoadOptions{MaxContext: 512})
	if err != nil {
		b.Fatal(err)
	}
	for _, text := range []struct{ name, prompt string }{
		{"repetitive", "Repeat this list again and again: apples, pears, plums, cherries. apples, pears, plums, cherries. apples, pears,"},
		{"plain", "The history of the city of Lisbon begins"},
	} {
		for _, streams := range []int{1, 2, 8} {
			for _, speculate := range []int{0, 4} {
				b.Run(fmt.Sprintf("%s/streams=%d/speculate=%d", text.name, streams, speculate), func(b *testing.B) {
					for range b.N {
						speculating(b, dev, m, text.prompt, streams, speculate)
					}
				})
			}
		}
	}
}

// stopwatch sets a clock when a step is done.
type stopwatch struct {
	device.Runner
	now *int64
}

func (c stopwatch) Wait(out *device.Result) error {
	err := c.Runner.Wait(out)
	*c.now = time.Now().UnixMicro()
	return err
}

func speculating(b *testing.B, dev device.Device, m *model.Model, text string, streams, speculate int) {
	s := Settings{Blocks: streams * 32, MaxSequences: streams, Speculate: speculate, Logger: quiet()}.WithDefaults()
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
	p, err := newPlanner(s, Model{Runner: runner, ContextLength: m.Context, Vocab: m.Config.Vocab})
	if err != nil {
		b.Fatal(err)
	}
	r := &rig{t: b, model: p.model, now: 1, got: map[string]*heard{}}
	r.device = stopwatch{runner, &r.now}
	r.drive(p)
	for i := range streams {
		r.add(ask(fmt.Sprint(i), m.Tokenizer.Encode(nil, text+" "+fmt.Sprint(i), true), 150))
	}
	decoding := func() bool { return len(r.got) == streams }
	for !decoding() && r.step() {
	}
	had, from := p.count.generated, cpuNS()
	for r.step() {
	}
	tokens := p.count.generated - had
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(cpuNS()-from)/float64(tokens)/1e6, "cpu-ms/token")
	b.ReportMetric(float64(p.count.steps), "steps")
}
