//go:build cgo

package telemetry

import (
	"fmt"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Open returns a reader of this machine's GPUs, or of the host if it has no NVML.
func Open() Reader {
	lib := nvml.New()
	if ret := lib.Init(); ret != nvml.SUCCESS {
		return openHost()
	}
	return openNVML(lib)
}

// gpus reads through NVML.
type gpus struct {
	lib     nvml.Interface
	devices []nvml.Device
	lost    []error // per index, why the device could not be opened

	events nvml.EventSet
	done   chan struct{}
	wait   sync.WaitGroup

	mu   sync.Mutex
	xids map[string][]uint64 // by UUID
}

func openNVML(lib nvml.Interface) *gpus {
	g := &gpus{lib: lib, done: make(chan struct{}), xids: map[string][]uint64{}}
	count, ret := lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		count = 0
	}
	for i := range count {
		d, ret := lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			g.devices = append(g.devices, nil)
			g.lost = append(g.lost, fmt.Errorf("device %d cannot be opened: %s", i, lib.ErrorString(ret)))
			continue
		}
		g.devices = append(g.devices, d)
		g.lost = append(g.lost, nil)
	}
	g.listen()
	return g
}

// listen registers for critical errors; a driver that offers none leaves XIDs missing.
func (g *gpus) listen() {
	set, ret := g.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return
	}
	registered := false
	for _, d := range g.devices {
		if d != nil && d.RegisterEvents(nvml.EventTypeXidCriticalError, set) == nvml.SUCCESS {
			registered = true
		}
	}
	if !registered {
		_ = set.Free()
		return
	}
	g.events = set
	g.wait.Go(func() {
		for {
			select {
			case <-g.done:
				return
			default:
			}
			// A second bounds how long Close waits.
			event, ret := set.Wait(1000)
			if ret == nvml.SUCCESS && event.EventType == nvml.EventTypeXidCriticalError {
				g.note(event)
			} else if ret != nvml.SUCCESS && ret != nvml.ERROR_TIMEOUT {
				return
			}
		}
	})
}

// note keeps the newest 16 errors of a device. An event without a known device counts for all of
// them: unsure means unhealthy.
func (g *gpus) note(event nvml.EventData) {
	g.mu.Lock()
	defer g.mu.Unlock()
	add := func(uuid string) {
		list := append(g.xids[uuid], event.EventData)
		g.xids[uuid] = list[max(0, len(list)-16):]
	}
	if event.Device != nil {
		if uuid, ret := event.Device.GetUUID(); ret == nvml.SUCCESS {
			add(uuid)
			return
		}
	}
	for _, d := range g.devices {
		if d == nil {
			continue
		}
		if uuid, ret := d.GetUUID(); ret == nvml.SUCCESS {
			add(uuid)
		}
	}
}

// Read implements [Reader].
func (g *gpus) Read() []Frame {
	frames := make([]Frame, len(g.devices))
	for i, d := range g.devices {
		f := &frames[i]
		f.Index = i
		if d == nil {
			f.Reasons = append(f.Reasons, g.lost[i].Error())
		} else {
			g.read(f, d)
		}
		f.judge()
	}
	return frames
}

func (g *gpus) read(f *Frame, d nvml.Device) {
	// got notes a value that the device does not report, and an error that means it is gone.
	got := func(what string, ret nvml.Return) bool {
		switch ret {
		case nvml.SUCCESS:
			return true
		case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_RESET_REQUIRED, nvml.ERROR_UNKNOWN:
			reason := "NVML: " + g.lib.ErrorString(ret)
			if len(f.Reasons) == 0 || f.Reasons[0] != reason {
				f.Reasons = append(f.Reasons, reason)
			}
		}
		f.Missing = append(f.Missing, what)
		return false
	}
	if v, ret := d.GetUUID(); got("uuid", ret) {
		f.UUID = v
	}
	if v, ret := d.GetName(); got("name", ret) {
		f.Name = v
	}
	if v, ret := d.GetMemoryInfo(); got("memory", ret) {
		f.MemoryTotalBytes, f.MemoryUsedBytes = v.Total, v.Used
	}
	if v, ret := d.GetUtilizationRates(); got("utilisation", ret) {
		f.UtilisationPct = v.Gpu
	}
	if v, ret := d.GetTemperature(nvml.TEMPERATURE_GPU); got("temperature", ret) {
		f.TemperatureC = v
	}
	if v, ret := d.GetPowerUsage(); got("power", ret) {
		f.PowerMW = v
	}
	if v, ret := d.GetEnforcedPowerLimit(); got("power limit", ret) {
		f.PowerLimitMW = v
	}
	if v, ret := d.GetTotalEnergyConsumption(); got("energy", ret) {
		f.EnergyMJ = v
	}
	if v, ret := d.GetClockInfo(nvml.CLOCK_SM); got("clock", ret) {
		f.ClockMHz = v
	}
	if v, ret := d.GetMaxClockInfo(nvml.CLOCK_SM); got("maximum clock", ret) {
		f.ClockMaxMHz = v
	}
	if v, ret := d.GetCurrentClocksEventReasons(); got("throttle reasons", ret) {
		f.Throttle = throttleReasons(v)
	}
	if v, ret := d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); got("ECC errors", ret) {
		f.ECCUncorrected = v
	}
	if _, _, _, failed, ret := d.GetRemappedRows(); got("remapped rows", ret) {
		f.RowsRemapFailed = failed
	}
	if g.events == nil {
		f.Missing = append(f.Missing, "XID events")
	}
	g.mu.Lock()
	f.XIDs = append(f.XIDs, g.xids[f.UUID]...)
	g.mu.Unlock()
}

// throttleReasons names the bits of NVML's clocks event reasons.
func throttleReasons(bits uint64) []string {
	names := []struct {
		bit  uint64
		name string
	}{
		{0x1, "idle"}, {0x2, "application setting"}, {0x4, "software power cap"}, {0x8, "hardware slowdown"},
		{0x10, "sync boost"}, {0x20, "software thermal slowdown"}, {0x40, "hardware thermal slowdown"},
		{0x80, "power brake"}, {0x100, "display clock setting"}, {0x200, "board limit"}, {0x400, "reliability limit"},
	}
	var out []string
	for _, n := range names {
		if bits&n.bit != 0 {
			out = append(out, n.name)
			bits &^= n.bit
		}
	}
	if bits != 0 {
		out = append(out, fmt.Sprintf("unknown reason 0x%x", bits))
	}
	return out
}

// Close implements [Reader].
func (g *gpus) Close() error {
	close(g.done)
	g.wait.Wait()
	if g.events != nil {
		_ = g.events.Free()
	}
	if ret := g.lib.Shutdown(); ret != nvml.SUCCESS {
		return fmt.Errorf("telemetry: NVML shutdown: %s", g.lib.ErrorString(ret))
	}
	return nil
}
