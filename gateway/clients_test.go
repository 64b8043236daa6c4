package gateway_test

import (
	"testing"

	"github.com/quire-serve/quire/gateway/clienttest"
	"github.com/quire-serve/quire/gateway/gatewaytest"
)

func (d *door) target() clienttest.Target {
	return clienttest.Target{URL: d.url, Model: "test", ContextLength: 2048, Idle: func(t testing.TB) {
		if s := d.Await(func(s gatewaytest.State) bool { return s.UsedBlocks == 0 }); len(s.Aborts) != 1 {
			t.Errorf("%d requests were aborted, not the one", len(s.Aborts))
		}
	}}
}

// TestOpenAIGo runs the official Go client.
func TestOpenAIGo(t *testing.T) {
	clienttest.OpenAIGo(t, open(t, gatewaytest.Options{StallAt: 500}).target())
}

// TestOpenAIGoFull runs it against a full queue.
func TestOpenAIGoFull(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	clienttest.OpenAIGoFull(t, d.target(),
		func() { d.Refuse(gatewaytest.QueueFull(1)) },
		func() { d.Refuse(nil) })
}

// TestOpenAINode runs the official Node client.
func TestOpenAINode(t *testing.T) {
	clienttest.OpenAINode(t, open(t, gatewaytest.Options{StallAt: 500}).target(), "../test/clients/openai-node")
}
