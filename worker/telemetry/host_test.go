package telemetry

import (
	"testing"
	"testing/fstest"
)

func TestHostReadsLinux(t *testing.T) {
	files := fstest.MapFS{
		"proc/cpuinfo":                         {Data: []byte("processor\t: 0\nmodel name\t: Some CPU\n")},
		"proc/meminfo":                         {Data: []byte("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n")},
		"proc/stat":                            {Data: []byte("cpu  100 0 50 800 50 0 0 0 7 0\ncpu0 1 2 3\n")},
		"sys/class/thermal/thermal_zone0/temp": {Data: []byte("42500\n")},
	}
	h := &host{root: files}
	f := h.Read()[0]
	if f.Name != "Some CPU" || f.MemoryTotalBytes != 1000<<10 || f.MemoryUsedBytes != 600<<10 || f.UtilisationPct != 15 || f.TemperatureC != 42 {
		t.Errorf("frame %+v", f)
	}
	if !f.Healthy() || f.Derate != 1 {
		t.Errorf("healthy %v, derate %v", f.Healthy(), f.Derate)
	}
	// The second reading covers only what came since the first: 100 of 200 jiffies.
	files["proc/stat"] = &fstest.MapFile{Data: []byte("cpu  200 0 50 900 50 0 0 0 7 0\n")}
	if f := h.Read()[0]; f.UtilisationPct != 50 {
		t.Errorf("utilisation %d %%, want 50", f.UtilisationPct)
	}
}

func TestHostSaysWhatIsMissing(t *testing.T) {
	h := &host{root: fstest.MapFS{"proc/meminfo": {Data: []byte("MemTotal: 5 kB\n")}, "proc/stat": {Data: []byte("cpu x y z 1 2 3\n")}}}
	f := h.Read()[0]
	want := map[string]bool{"memory": true, "utilisation": true, "temperature": true}
	for _, m := range f.Missing {
		delete(want, m)
	}
	if len(want) > 0 {
		t.Errorf("missing %q lacks %v", f.Missing, want)
	}
	if !f.Healthy() {
		t.Errorf("a host without sensors is not unhealthy: %v", f.Reasons)
	}
}
