package telemetry

import "slices"

// Reader reads frames. It is used from one goroutine.
type Reader interface {
	// Read returns a frame for each device. It does not fail: what cannot be read is in the frames.
	Read() []Frame
	Close() error
}

// Frame is the state of one device at one moment.
type Frame struct {
	Index int
	UUID  string
	Name  string

	MemoryTotalBytes uint64
	MemoryUsedBytes  uint64
	UtilisationPct   uint32 // share of the last sample period in which it computed
	TemperatureC     uint32
	PowerMW          uint32 // drawn
	PowerLimitMW     uint32 // enforced
	EnergyMJ         uint64 // millijoules since the driver was loaded
	ClockMHz         uint32 // SM clock now
	ClockMaxMHz      uint32
	Throttle         []string // why clocks are held down, sorted
	ECCUncorrected   uint64   // volatile uncorrected errors
	RowsRemapFailed  bool
	XIDs             []uint64 // critical errors since the reader was opened, newest last, at most 16

	Missing []string // what this device could not report, sorted
	Reasons []string // why it is not healthy, sorted; empty when healthy
	// Derate is the share of its rated speed that it gives, (0, 1]; 1 when nothing holds it down.
	Derate float64
}

// Healthy reports whether new work may go to the device.
func (f *Frame) Healthy() bool { return len(f.Reasons) == 0 }

// judge fills Reasons and Derate from what was read.
func (f *Frame) judge() {
	if f.ECCUncorrected > 0 {
		f.Reasons = append(f.Reasons, "uncorrected memory errors")
	}
	if f.RowsRemapFailed {
		f.Reasons = append(f.Reasons, "memory row remapping failed")
	}
	for _, x := range f.XIDs {
		if reason, ok := fatalXIDs[x]; ok && !slices.Contains(f.Reasons, reason) {
			f.Reasons = append(f.Reasons, reason)
		}
	}
	slices.Sort(f.Reasons)
	slices.Sort(f.Missing)
	slices.Sort(f.Throttle)
	f.Derate = 1
	if held := slices.ContainsFunc(f.Throttle, func(s string) bool { return s != "idle" && s != "application setting" }); held && f.ClockMaxMHz > 0 {
		// Compute scales with the SM clock; the floor keeps a throttled device in use for work
		// that nothing else can take.
		f.Derate = max(0.1, min(1, float64(f.ClockMHz)/float64(f.ClockMaxMHz)))
	}
}

// fatalXIDs are the driver's error numbers after which a GPU must get no new work.
var fatalXIDs = map[uint64]string{
	48:  "double-bit memory error (XID 48)",
	63:  "memory row remapping pending (XID 63)",
	64:  "memory row remapping failed (XID 64)",
	74:  "NVLink error (XID 74)",
	79:  "fell off the bus (XID 79)",
	94:  "contained memory error (XID 94)",
	95:  "uncontained memory error (XID 95)",
	119: "GPU system processor timeout (XID 119)",
	120: "GPU system processor error (XID 120)",
}
