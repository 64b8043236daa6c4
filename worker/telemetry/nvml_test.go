//go:build cgo

package telemetry

import (
	"slices"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// dgx is go-nvml's DGX H100 with the telemetry calls answered: they panic when left unset. Each test
// changes what it is about.
func dgx(t *testing.T) (*server.Server, []*server.Device, chan nvml.EventData) {
	t.Helper()
	s := dgxh100.New()
	events := make(chan nvml.EventData, 4)
	var devices []*server.Device
	for _, d := range s.Devices {
		d := d.(*server.Device)
		devices = append(devices, d)
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 73}, nvml.SUCCESS }
		d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 61, nvml.SUCCESS }
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 512_000, nvml.SUCCESS }
		d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 700_000, nvml.SUCCESS }
		d.GetTotalEnergyConsumptionFunc = func() (uint64, nvml.Return) { return 9_000_000, nvml.SUCCESS }
		d.GetClockInfoFunc = func(nvml.ClockType) (uint32, nvml.Return) { return 1980, nvml.SUCCESS }
		d.GetMaxClockInfoFunc = func(nvml.ClockType) (uint32, nvml.Return) { return 1980, nvml.SUCCESS }
		d.GetCurrentClocksEventReasonsFunc = func() (uint64, nvml.Return) { return 0, nvml.SUCCESS }
		d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 0, nvml.SUCCESS }
		d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 0, false, false, nvml.SUCCESS }
		d.RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return nvml.SUCCESS }
	}
	set := &mock.EventSet{
		WaitFunc: func(uint32) (nvml.EventData, nvml.Return) {
			select {
			case e := <-events:
				return e, nvml.SUCCESS
			case <-time.After(time.Millisecond):
				return nvml.EventData{}, nvml.ERROR_TIMEOUT
			}
		},
		FreeFunc: func() nvml.Return { return nvml.SUCCESS },
	}
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) { return set, nvml.SUCCESS }
	s.ErrorStringFunc = func(r nvml.Return) string { return nvml.ErrorString(r) }
	return s, devices, events
}

func open(t *testing.T, s *server.Server) Reader {
	r := openNVML(s)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestReadsEightGPUs(t *testing.T) {
	s, _, _ := dgx(t)
	frames := open(t, s).Read()
	if len(frames) != 8 {
		t.Fatalf("%d frames, want 8", len(frames))
	}
	for i, f := range frames {
		if f.Index != i || f.UUID == "" || f.MemoryTotalBytes != 81920<<20 || f.UtilisationPct != 73 || f.TemperatureC != 61 || f.PowerMW != 512_000 || f.EnergyMJ != 9_000_000 {
			t.Errorf("frame %+v", f)
		}
		if !f.Healthy() || f.Derate != 1 || len(f.Missing) > 0 {
			t.Errorf("GPU %d: healthy %v (%v), derate %v, missing %v", i, f.Healthy(), f.Reasons, f.Derate, f.Missing)
		}
	}
}

func TestThrottledGPUIsDerated(t *testing.T) {
	s, devices, _ := dgx(t)
	devices[3].GetCurrentClocksEventReasonsFunc = func() (uint64, nvml.Return) { return 0x40 | 0x4, nvml.SUCCESS }
	devices[3].GetClockInfoFunc = func(nvml.ClockType) (uint32, nvml.Return) { return 990, nvml.SUCCESS }
	// An idle GPU lowers its clock of its own accord.
	devices[4].GetCurrentClocksEventReasonsFunc = func() (uint64, nvml.Return) { return 0x1, nvml.SUCCESS }
	devices[4].GetClockInfoFunc = func(nvml.ClockType) (uint32, nvml.Return) { return 345, nvml.SUCCESS }
	frames := open(t, s).Read()
	if f := frames[3]; f.Derate != 0.5 || !f.Healthy() || !slices.Equal(f.Throttle, []string{"hardware thermal slowdown", "software power cap"}) {
		t.Errorf("throttled: derate %v, throttle %q", f.Derate, f.Throttle)
	}
	if f := frames[4]; f.Derate != 1 {
		t.Errorf("idle: derate %v, want 1", f.Derate)
	}
}

func TestFailuresMakeUnhealthy(t *testing.T) {
	s, devices, _ := dgx(t)
	devices[0].GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 2, nvml.SUCCESS }
	devices[1].GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 1, 1, false, true, nvml.SUCCESS }
	devices[2].GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 0, nvml.ERROR_GPU_IS_LOST }
	devices[3].GetPowerUsageFunc = func() (uint32, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	frames := open(t, s).Read()
	for i, want := range []bool{false, false, false, true} {
		if frames[i].Healthy() != want {
			t.Errorf("GPU %d: healthy %v, reasons %v", i, frames[i].Healthy(), frames[i].Reasons)
		}
	}
	if !slices.Equal(frames[3].Missing, []string{"power"}) {
		t.Errorf("GPU 3 is missing %q, want power", frames[3].Missing)
	}
}

func TestXIDsReachTheirGPU(t *testing.T) {
	s, devices, events := dgx(t)
	r := open(t, s)
	events <- nvml.EventData{Device: devices[5], EventType: nvml.EventTypeXidCriticalError, EventData: 79}
	events <- nvml.EventData{Device: devices[6], EventType: nvml.EventTypeXidCriticalError, EventData: 13}
	for {
		frames := r.Read()
		if len(frames[6].XIDs) == 0 {
			continue
		}
		// The events are read in order, so the first is there when the second is: but GPU 5's frame
		// may have been taken before both.
		frames = r.Read()
		if frames[5].Healthy() || !slices.Equal(frames[5].XIDs, []uint64{79}) {
			t.Errorf("XID 79: healthy %v, XIDs %v", frames[5].Healthy(), frames[5].XIDs)
		}
		if !frames[6].Healthy() {
			t.Errorf("XID 13 is a program's fault, not the GPU's: %v", frames[6].Reasons)
		}
		if !frames[7].Healthy() {
			t.Errorf("GPU 7: %v", frames[7].Reasons)
		}
		return
	}
}

func TestMachineWithoutNVML(t *testing.T) {
	r := Open()
	defer r.Close()
	if frames := r.Read(); len(frames) == 0 || frames[0].MemoryTotalBytes == 0 {
		t.Errorf("frames %+v", frames)
	}
}
