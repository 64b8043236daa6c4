package cpu

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/quire-serve/quire/device"
)

// Options of [Open]. The zero value is the fastest path on all cores.
type Options struct {
	Threads int // 0: as many as GOMAXPROCS
	// Path chooses kernels: "avx512", "avx2", "generic", "go"; "" is the best that this machine and
	// build have. All give the same bits.
	Path string
	// ExactFloat turns every weight into F32 as it is loaded, so that nothing but F32 rounding
	// separates a model from its file. For tests: slow and large.
	ExactFloat bool
	// MemoryBytes bounds weights, pages and buffers together; 0 is the machine's memory.
	MemoryBytes int64
}

// Device is the processor.
type Device struct {
	opts Options
	kern kernels
	info device.Info

	mu     sync.Mutex
	used   int64
	closed bool
	frees  []func() // weights, freed with the device
}

var _ device.Device = (*Device)(nil)

// MaxThreads bounds Options.Threads.
const MaxThreads = 1024

// pageFormat names the order of a page's bytes, which doc.go states.
const pageFormat = "cpu, K tiles of 16 tokens transposed"

// Open starts the device. An unknown path, or one that this machine or build does not have, is an
// error that names those it has.
func Open(opts Options) (*Device, error) {
	if opts.Threads < 0 || opts.Threads > MaxThreads {
		return nil, fmt.Errorf("cpu: threads must be 0 to %d, have %d", MaxThreads, opts.Threads)
	}
	if opts.MemoryBytes < 0 {
		return nil, fmt.Errorf("cpu: memory bytes must not be negative, have %d", opts.MemoryBytes)
	}
	if opts.Threads == 0 {
		opts.Threads = runtime.GOMAXPROCS(0)
	}
	if opts.MemoryBytes == 0 {
		opts.MemoryBytes = machineMemory()
	}
	have := Paths()
	if opts.Path == "" {
		opts.Path = have[0]
	}
	if !slices.Contains(have, opts.Path) {
		return nil, fmt.Errorf("cpu: no path %q here; this machine and build have %s", opts.Path, strings.Join(have, ", "))
	}
	kern, err := openPath(opts.Path, opts.Threads)
	if err != nil {
		return nil, fmt.Errorf("cpu: open path %s: %w", opts.Path, err)
	}
	arithmetic := "cpu"
	if opts.ExactFloat {
		arithmetic = "cpu, exact float"
	}
	return &Device{opts: opts, kern: kern, info: device.Info{
		Name: "cpu", Arithmetic: arithmetic, PageFormat: pageFormat, Description: processorName(), Path: kern.path(), Threads: opts.Threads, MemoryBytes: opts.MemoryBytes,
	}}, nil
}

// Paths lists the paths that work here, best first.
func Paths() []string { return append(nativePaths(), "go") }

func openPath(path string, threads int) (kernels, error) {
	if path == "go" {
		return newGoKernels(threads), nil
	}
	return openNative(path, threads)
}

// Info describes the processor and the path in use.
func (d *Device) Info() device.Info { return d.info }

// reserve accounts for bytes about to be allocated; release gives them back.
func (d *Device) reserve(what string, bytes int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return device.ErrClosed
	}
	if bytes < 0 || bytes > d.opts.MemoryBytes-d.used {
		return fmt.Errorf("cpu: %s needs %d bytes, %d of %d are in use: %w", what, bytes, d.used, d.opts.MemoryBytes, device.ErrMemory)
	}
	d.used += bytes
	return nil
}

func (d *Device) release(bytes int64) {
	d.mu.Lock()
	d.used -= bytes
	d.mu.Unlock()
}

// Close frees the weights. Runners and pages must have been closed.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	for _, free := range d.frees {
		free()
	}
	d.frees = nil
	d.kern.close()
	return nil
}

// NewPages allocates a paged cache. Its memory is touched only as pages are written.
func (d *Device) NewPages(l device.KVLayout) (device.Pages, error) {
	switch {
	case l.Type != device.F32 && l.Type != device.F16 && l.Type != device.I8:
		return nil, fmt.Errorf("cpu: KV type %s, want F32, F16 or I8: %w", l.Type, device.ErrUnsupported)
	case l.BlockTokens < tileTokens || l.BlockTokens%tileTokens != 0 || l.BlockTokens > 1<<16:
		return nil, fmt.Errorf("cpu: block tokens must be a multiple of %d up to %d, have %d", tileTokens, 1<<16, l.BlockTokens)
	case l.Pages < 1 || l.Layers < 1 || l.KVHeads < 1 || l.HeadDim < 1:
		return nil, fmt.Errorf("cpu: pages, layers, KV heads and head dimension must be positive, have %+v", l)
	case l.HeadDim > 1<<12 || l.KVHeads > 1<<12 || l.Layers > 1<<12:
		return nil, fmt.Errorf("cpu: layers, KV heads and head dimension must be at most %d, have %+v", 1<<12, l)
	case l.WindowPages < 0 || l.WindowLayers < 0 || l.WindowLayers > 1<<12 || (l.WindowPages > 0) != (l.WindowLayers > 0):
		return nil, fmt.Errorf("cpu: a second group of pages must have pages and 1 to %d layers, have %+v", 1<<12, l)
	}
	var bytes int64
	for i := range l.Groups() {
		g := l.Group(i)
		if int64(g.Pages) > (math.MaxInt64-bytes)/g.PageBytes() || g.Pages > math.MaxInt32 {
			return nil, fmt.Errorf("cpu: %d pages of %d bytes: %w", g.Pages, g.PageBytes(), device.ErrMemory)
		}
		bytes += int64(g.Pages) * g.PageBytes()
	}
	if err := d.reserve("the KV cache", bytes); err != nil {
		return nil, err
	}
	mem, free, err := d.kern.alloc(bytes)
	if err != nil {
		d.release(bytes)
		return nil, fmt.Errorf("cpu: allocate %d pages: %w", l.Pages, err)
	}
	return &pages{dev: d, layout: l, mem: mem, freeMem: free}, nil
}

// tileTokens is the number of tokens in a tile of the KV cache.
const tileTokens = 16

type pages struct {
	dev     *Device
	layout  device.KVLayout
	mem     []byte
	freeMem func()
}

func (p *pages) Layout() device.KVLayout { return p.layout }

// groupMemory is the memory of one group of pages: the second's lies behind the first's.
func groupMemory(l device.KVLayout, mem []byte, group int) []byte {
	first := int64(l.Pages) * l.PageBytes()
	if group == 0 {
		return mem[:first:first]
	}
	return mem[first:]
}

func (p *pages) page(i int32) ([]byte, error) {
	if p.mem == nil {
		return nil, device.ErrClosed
	}
	if i < 0 || int(i) >= p.layout.Pages {
		return nil, fmt.Errorf("cpu: page %d of %d", i, p.layout.Pages)
	}
	n := p.layout.PageBytes()
	return p.mem[int64(i)*n : int64(i+1)*n : int64(i+1)*n], nil
}

func (p *pages) Read(i int32, dst []byte) error {
	page, err := p.page(i)
	if err != nil {
		return err
	}
	if len(dst) != len(page) {
		return fmt.Errorf("cpu: read page: buffer of %d bytes, want %d", len(dst), len(page))
	}
	copy(dst, page)
	return nil
}

func (p *pages) Write(i int32, src []byte) error {
	page, err := p.page(i)
	if err != nil {
		return err
	}
	if len(src) != len(page) {
		return fmt.Errorf("cpu: write page: %d bytes, want %d", len(src), len(page))
	}
	copy(page, src)
	return nil
}

func (p *pages) Close() error {
	if p.mem == nil {
		return nil
	}
	p.freeMem()
	p.dev.release(int64(len(p.mem)))
	p.mem = nil
	return nil
}

// Compile prepares p; see plan.go for what becomes of its operations.
func (d *Device) Compile(p *device.Program, kv device.Pages, limits device.Limits) (device.Runner, error) {
	own, ok := kv.(*pages)
	if !ok || own.dev != d || own.mem == nil {
		return nil, fmt.Errorf("cpu: compile: the pages are not open pages of this device")
	}
	plan, err := compile(p, own.layout, limits)
	if err != nil {
		return nil, err
	}
	for _, w := range plan.weights {
		if w.dev != d {
			return nil, fmt.Errorf("cpu: compile: weight %q belongs to another device", w.name)
		}
	}
	bytes := plan.bufferBytes()
	if err := d.reserve("the buffers of a runner", bytes); err != nil {
		return nil, err
	}
	if err := plan.pack(d); err != nil {
		d.release(bytes)
		return nil, err
	}
	exec, err := d.kern.executor(plan, own.mem)
	if err != nil {
		d.release(bytes)
		return nil, err
	}
	return newRunner(d, plan, own, exec, bytes), nil
}
