package telemetry

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// host reads the machine itself, from Linux's /proc and /sys; elsewhere most values are missing.
type host struct {
	root        fs.FS // "/" of the machine
	busy, total uint64
}

func openHost() *host { return &host{root: os.DirFS("/")} }

// OpenHost returns a reader of the machine's own processors and memory, for workers that compute on
// them.
func OpenHost() Reader { return openHost() }

// Read implements [Reader]: one frame for the host. Utilisation covers the time since the last Read.
func (h *host) Read() []Frame {
	f := Frame{UUID: "host", Name: h.cpuName()}
	if total, free, ok := h.memory(); ok {
		f.MemoryTotalBytes, f.MemoryUsedBytes = total, total-free
	} else {
		f.Missing = append(f.Missing, "memory")
	}
	if busy, total, ok := h.cpuTime(); ok && total > h.total {
		f.UtilisationPct = uint32(100 * (busy - h.busy) / (total - h.total))
		h.busy, h.total = busy, total
	} else if !ok {
		f.Missing = append(f.Missing, "utilisation")
	}
	if milli, ok := h.number("sys/class/thermal/thermal_zone0/temp"); ok {
		f.TemperatureC = uint32(milli / 1000)
	} else {
		f.Missing = append(f.Missing, "temperature")
	}
	f.Missing = append(f.Missing, "power", "energy", "clock", "throttle reasons", "ECC errors")
	f.judge()
	return []Frame{f}
}

// Close implements [Reader].
func (h *host) Close() error { return nil }

// lines calls line for each line of a file until it returns false.
func (h *host) lines(name string, line func(string) bool) bool {
	f, err := h.root.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	for s := bufio.NewScanner(io.LimitReader(f, 1<<20)); s.Scan(); {
		if !line(s.Text()) {
			break
		}
	}
	return true
}

func (h *host) cpuName() string {
	name := "cpu"
	h.lines("proc/cpuinfo", func(l string) bool {
		key, value, _ := strings.Cut(l, ":")
		if strings.TrimSpace(key) == "model name" {
			name = strings.TrimSpace(value)
			return false
		}
		return true
	})
	return name
}

// memory returns bytes in total and available.
func (h *host) memory() (total, available uint64, ok bool) {
	found := 0
	h.lines("proc/meminfo", func(l string) bool {
		var kb uint64
		if n, _ := fmt.Sscanf(l, "MemTotal: %d kB", &kb); n == 1 {
			total, found = kb<<10, found+1
		} else if n, _ := fmt.Sscanf(l, "MemAvailable: %d kB", &kb); n == 1 {
			available, found = kb<<10, found+1
		}
		return found < 2
	})
	return total, available, found == 2 && available <= total
}

// cpuTime returns the jiffies that all processors together were busy, and in total.
func (h *host) cpuTime() (busy, total uint64, ok bool) {
	h.lines("proc/stat", func(l string) bool {
		fields := strings.Fields(l)
		if len(fields) < 6 || fields[0] != "cpu" {
			return true
		}
		var idle uint64
		// user nice system idle iowait irq softirq steal; guest time is in user already.
		for i, field := range fields[1:min(len(fields), 9)] {
			v, err := strconv.ParseUint(field, 10, 64)
			if err != nil {
				return false
			}
			total += v
			if i == 3 || i == 4 {
				idle += v
			}
		}
		busy, ok = total-idle, true
		return false
	})
	return busy, total, ok
}

func (h *host) number(name string) (v int64, ok bool) {
	h.lines(name, func(l string) bool {
		n, err := strconv.ParseInt(strings.TrimSpace(l), 10, 64)
		v, ok = n, err == nil
		return false
	})
	return v, ok
}
