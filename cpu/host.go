package cpu

import (
	"bufio"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// processorName is what the system calls the processor, or the architecture where it does not say.
func processorName() string {
	if name := procField("/proc/cpuinfo", "model name"); name != "" {
		return name
	}
	return runtime.GOARCH
}

// machineMemory is the machine's memory, or what the process was limited to if that is less. Where
// the system does not say it is unbounded, and allocation fails when there is no more.
func machineMemory() int64 {
	bytes := int64(1) << 50
	if kib, err := strconv.ParseInt(strings.TrimSuffix(procField("/proc/meminfo", "MemTotal"), " kB"), 10, 64); err == nil {
		bytes = min(bytes, kib<<10)
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
			bytes = min(bytes, limit)
		}
	}
	return bytes
}

// procField returns the value of the first line "name: value" of a file of /proc.
func procField(file, name string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
