package worker

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/quire-serve/quire/worker/telemetry"
)

// hotter is a reader whose device is a degree hotter each time.
type hotter struct {
	reads  uint32
	closed bool
}

func (h *hotter) Read() []telemetry.Frame {
	h.reads++
	return []telemetry.Frame{{UUID: "GPU-1", TemperatureC: 50 + h.reads, Derate: 0.5, Reasons: []string{"fell off the bus (XID 79)"}}}
}

func (h *hotter) Close() error { h.closed = true; return nil }

// TestHeartbeatsCarryDevices: frames are read once a second and are in the heartbeats between.
func TestHeartbeatsCarryDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &Worker{}
		if frames := w.devices.latest(); frames != nil {
			t.Errorf("before any was read: %v", frames)
		}
		ctx, cancel := context.WithTimeout(t.Context(), telemetryInterval*5/2)
		defer cancel()
		reader := &hotter{}
		w.devices.watch(ctx, reader, slog.Default())
		frames := w.devices.latest()
		if len(frames) != 1 || frames[0].TemperatureC != 53 || frames[0].Uuid != "GPU-1" || frames[0].DeratePermille != 500 || len(frames[0].Unhealthy) != 1 {
			t.Errorf("after two and a half seconds: %v", frames)
		}
		if !reader.closed {
			t.Error("the reader was left open")
		}
	})
}
