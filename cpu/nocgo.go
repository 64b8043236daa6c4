//go:build !cgo

package cpu

import "fmt"

// nativePaths lists the C paths that work here, best first: none without cgo.
func nativePaths() []string { return nil }

func openNative(path string, _ int) (kernels, error) {
	return nil, fmt.Errorf("path %s needs cgo", path)
}
