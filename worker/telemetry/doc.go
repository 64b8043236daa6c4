// Package telemetry reads the state of the hardware that a worker runs on, for the control plane's
// placement: GPUs through NVML, the host's own processors and memory where there is no NVML.
//
// A [Reader] returns one [Frame] a device. A frame carries what was read, a verdict ([Frame.Healthy]
// with reasons) and a derating: the share of its rated speed that the device can be expected to give
// now. A field that a device cannot report is left at its zero value and named in Frame.Missing;
// a device that cannot be asked at all is unhealthy, since unsure means unhealthy.
//
// Utilisation is reported for people; load decisions use queue and cache occupancy, which are exact.
//
// The package imports nothing of ours. NVML needs cgo; without it only the host is read.
package telemetry
