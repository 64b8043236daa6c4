// Command placement compares the placement policies: it runs the scheduler's own batcher and prefix
// index over simulated workers and a trace of real requests, in virtual time. The same flags give the
// same figures on every machine.
//
// It imports the code that places and nothing else of ours; workers are modelled in worker.go.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/quire-serve/quire/scheduler/batch"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "placement:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	f := flag.NewFlagSet("placement", flag.ContinueOnError)
	trace := f.String("trace", "../shared/traces/mooncake_synthetic_trace.jsonl", "requests in Mooncake's format")
	into := f.String("out", "bench/results/placement.md", "file for the results; - is the standard output")
	model := defaultModel
	f.IntVar(&model.workers, "workers", model.workers, "number of workers")
	f.IntVar(&model.blocks, "blocks", model.blocks, "KV blocks of 512 tokens a worker")
	f.Int64Var(&model.tokensPerS, "speed", model.tokensPerS, "prompt tokens a worker computes a second")
	loads := []float64{0.5, 1, 2, 3, 4}
	f.Func("loads", "how many times as fast as recorded requests come, with commas (default 0.5,1,2,3,4)", func(s string) error {
		loads = nil
		for _, part := range strings.Split(s, ",") {
			var load float64
			if _, err := fmt.Sscan(part, &load); err != nil || load <= 0 {
				return fmt.Errorf("%q is not a positive number", part)
			}
			loads = append(loads, load)
		}
		return nil
	})
	policies := batch.Policies()
	f.Func("policies", "the policies to compare, with commas (default all)", func(s string) error {
		policies = nil
		for _, name := range strings.Split(s, ",") {
			if !slices.Contains(batch.Policies(), batch.Policy(name)) {
				return fmt.Errorf("%q is not one of %v", name, batch.Policies())
			}
			policies = append(policies, batch.Policy(name))
		}
		return nil
	})
	if err := f.Parse(args); err != nil {
		return err
	}
	file, err := os.Open(*trace)
	if err != nil {
		return err
	}
	defer file.Close()
	requests, err := readTrace(file)
	if err != nil {
		return fmt.Errorf("%s: %w", *trace, err)
	}
	var results []result
	for _, load := range loads {
		for _, policy := range policies {
			results = append(results, simulate(model, requests, policy, load))
		}
	}
	if *into == "-" {
		return report(out, model, requests, results)
	}
	to, err := os.Create(*into)
	if err != nil {
		return err
	}
	if err := report(to, model, requests, results); err != nil {
		return err
	}
	return to.Close()
}
