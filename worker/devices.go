package worker

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/telemetry"
)

// telemetryInterval is how often devices are read: a driver may take milliseconds to answer, and
// temperatures change slowly.
const telemetryInterval = time.Second

// devices holds the newest frames for heartbeats.
type devices struct {
	frames atomic.Pointer[[]*pb.DeviceFrame]
}

func (d *devices) latest() []*pb.DeviceFrame {
	if frames := d.frames.Load(); frames != nil {
		return *frames
	}
	return nil
}

// watch reads frames until ctx ends, and closes the reader.
func (d *devices) watch(ctx context.Context, reader telemetry.Reader, log *slog.Logger) {
	tick := time.NewTicker(telemetryInterval)
	defer tick.Stop()
	for {
		d.read(reader)
		select {
		case <-ctx.Done():
			if err := reader.Close(); err != nil {
				log.Warn("telemetry does not close", slog.Any("error", err))
			}
			return
		case <-tick.C:
		}
	}
}

func (d *devices) read(reader telemetry.Reader) {
	var frames []*pb.DeviceFrame
	for _, f := range reader.Read() {
		frames = append(frames, &pb.DeviceFrame{
			Index: int32(f.Index), Uuid: f.UUID, Name: f.Name,
			MemoryTotalBytes: f.MemoryTotalBytes, MemoryUsedBytes: f.MemoryUsedBytes,
			UtilisationPct: f.UtilisationPct, TemperatureC: f.TemperatureC,
			PowerMw: f.PowerMW, PowerLimitMw: f.PowerLimitMW, EnergyMj: f.EnergyMJ,
			ClockMhz: f.ClockMHz, ClockMaxMhz: f.ClockMaxMHz, Throttle: f.Throttle,
			EccUncorrected: f.ECCUncorrected, Xids: f.XIDs, Missing: f.Missing, Unhealthy: f.Reasons,
			DeratePermille: int32(1000 * f.Derate),
		})
	}
	d.frames.Store(&frames)
}
