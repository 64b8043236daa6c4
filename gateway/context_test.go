package gateway

import (
	"strings"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestAnswersWithoutABound: who names no bound gets the rest of the context, of a small one a quarter.
func TestAnswersWithoutABound(t *testing.T) {
	for _, c := range []struct {
		context, prompt, least int
		want                   int32
	}{
		{100, 10, 0, 90},
		{2048, 100, 0, 512},
		{2048, 2000, 0, 48},
		{8192, 100, 0, 2048},
		{8192, 100, 3000, 3000},
		{16384, 0, 0, 4096},
		{32768, 1000, 0, 31768},
	} {
		got, e := fitContext(&pb.SamplingParams{MinTokens: int32(c.least)}, "messages", c.prompt, c.context, ofModel, false)
		if e != nil || got != c.want {
			t.Errorf("%+v: %d, %v", c, got, e)
		}
	}
	_, e := fitContext(&pb.SamplingParams{}, "messages", 100, 100, ofModel, false)
	if e == nil || e.name != "context_length_exceeded" || !strings.Contains(e.message, "maximum context length is 100 tokens") {
		t.Errorf("a prompt as long as the context: %+v", e)
	}
}

// TestContextIsThatOfAllWorkers: what a request may ask for does not depend on which of the workers are
// connected just now, as long as one is.
func TestContextIsThatOfAllWorkers(t *testing.T) {
	m := &served{Model: Model{ID: "m", ContextLength: 2048}}
	models := map[string]*served{"m": m}
	large := &attachment{info: &pb.WorkerInfo{Id: "large", Model: "m", ContextLength: 2048, Tenants: []*pb.TenantShare{{Tenant: "t", Blocks: 100}}, BlockTokens: 16}}
	small := &attachment{info: &pb.WorkerInfo{Id: "small", Model: "m", ContextLength: 512}, connected: true}
	w := &workers{byID: map[string]*attachment{"large": large, "small": small}}
	for _, connected := range []bool{false, true} {
		large.connected = connected
		c := w.capacities(models)["m"]
		if c.context != 2048 || c.contextOf("t") != 1600 || c.ready != map[bool]int{false: 1, true: 2}[connected] {
			t.Errorf("with the large one connected %t: %+v", connected, c)
		}
	}
	small.connected, large.connected = false, false
	if c, known := w.capacities(models)["m"]; known {
		t.Errorf("with none connected: %+v", c)
	}
}
