package cpu

import "github.com/quire-serve/quire/device"

// kernels is one way to compute: the Go reference, or C for one instruction set. All ways give the
// same bits (see the package comment).
type kernels interface {
	// path is the name that Options.Path and Info use.
	path() string
	// pack copies parts, stacked by rows, into the form that the executors of this path read. The
	// parts have been checked: same columns, data of the right length.
	pack(parts []device.Tensor) (packed, error)
	// alloc returns zeroed memory, aligned to 64 bytes, and what frees it.
	alloc(bytes int64) ([]byte, func(), error)
	// executor prepares to run p over kv, the memory of the pages.
	executor(p *plan, kv []byte) (executor, error)
	// threads is how many run at once.
	threads() int
	close()

	rowKernels
}

// rowKernels are what sampling needs of a row of logits.
type rowKernels interface {
	// argmax returns the index of the largest element, the first among equals; NaNs are skipped. A
	// row of NaNs gives 0.
	argmax(x []float32) int32
	// expRow sets dst[i] = exp((x[i] - shift)·scale), where NaNs and -∞ give 0, and returns their
	// sum: sixteen binary64 lanes (lane i mod 16, in order of i), then Tree16.
	expRow(dst, x []float32, shift, scale float32) float64
}

// packed is a matrix in a path's own form.
type packed interface {
	bytes() int64
	free()
}

// executor runs one plan. It has buffers for the plan's limits and runs a step at a time.
type executor interface {
	run(s *step)
	close()
}

// step is the input of an executor: a batch whose token references were resolved and whose page
// copies were done. The slices are valid during the call only.
type step struct {
	tokens     []int32 // [rows]
	positions  []int32 // [rows]
	seqs       []device.Seq
	tables     []int32
	sampleRows []int32
	logits     []float32 // out: [samples, vocabulary]
}
