package main

import (
	"context"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
)

// TestMetricsAreAsTheCatalogueSays compares docs/metrics.md with what a node reports: every metric is in
// the catalogue, with its type and labels, and everything in the catalogue is reported.
func TestMetricsAreAsTheCatalogueSays(t *testing.T) {
	p := startDev(t, t.TempDir(), "--prompt", "")
	// What has series only once something happened.
	p.post("/v1/completions", `{"model":"tiny","prompt":"Once","max_tokens":8}`)
	p.post("/v1/completions", `{"model":"tiny","prompt":"Once","max_tokens":-8}`)
	conn, err := transport.DialClients(p.grpc)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call, err := pb.NewInferenceClient(conn).Generate(context.Background(), &pb.GenerateRequest{Model: "tiny", Input: &pb.GenerateRequest_Prompt{Prompt: "Once"}, Sampling: &pb.SamplingParams{MaxTokens: 1}})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = call.Recv()
	}

	type metric struct{ kind, labels string }
	catalogue := map[string]metric{}
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([a-z_:]+)` \\| (\\w+) \\| ([^|]*) \\| [^|]+ \\| [^|]+ \\| ([^|]*)\\|$")
	quoted := regexp.MustCompile("`([^`]+)`")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		var labels []string
		for _, l := range quoted.FindAllStringSubmatch(m[3], -1) {
			labels = append(labels, l[1])
		}
		slices.Sort(labels)
		catalogue[m[1]] = metric{m[2], strings.Join(labels, ",")}
		for _, alias := range quoted.FindAllStringSubmatch(m[4], -1) {
			with := append(slices.Clone(labels), "engine")
			slices.Sort(with)
			catalogue[alias[1]] = metric{m[2], strings.Join(with, ",")}
		}
	}
	if len(catalogue) < 50 {
		t.Fatalf("only %d rows of the catalogue can be read", len(catalogue))
	}

	var page string
	p.waitFor("reporting what was counted", func() bool {
		_, page = p.get("/metrics")
		return strings.Contains(page, "quire_leader_queue_bytes{") && strings.Contains(page, "quire_accepted_draft_tokens_at_total{")
	})
	reported := map[string]metric{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE ((?:quire_|vllm:)\S+) (\S+)$`).FindAllStringSubmatch(page, -1) {
		series := regexp.MustCompile(`(?m)^` + m[1] + `(?:_count)?(?:\{(.*)\})? `).FindStringSubmatch(page)
		if series == nil {
			t.Errorf("%s has no series", m[1])
			continue
		}
		var labels []string
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(series[1], -1) {
			labels = append(labels, l[1])
		}
		slices.Sort(labels)
		reported[m[1]] = metric{m[2], strings.Join(labels, ",")}
	}
	for _, name := range slices.Sorted(maps.Keys(reported)) {
		if catalogue[name] == (metric{}) {
			t.Errorf("%s is in no row of docs/metrics.md: %+v", name, reported[name])
		} else if catalogue[name] != reported[name] {
			t.Errorf("%s is %+v in docs/metrics.md, and %+v here", name, catalogue[name], reported[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(catalogue)) {
		if reported[name] == (metric{}) {
			t.Errorf("%s is in docs/metrics.md alone", name)
		}
	}
}
