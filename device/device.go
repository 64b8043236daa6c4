package device

import "errors"

var (
	// ErrUnsupported means that the device has no kernel for a tensor type or operation.
	ErrUnsupported = errors.New("device: unsupported")
	// ErrMemory means that an allocation did not fit.
	ErrMemory = errors.New("device: out of memory")
	// ErrClosed means that the device or runner was closed.
	ErrClosed = errors.New("device: closed")
)

// Device is a piece of hardware that runs programs.
type Device interface {
	Info() Info
	// Load copies parts, stacked by rows, into the layout the device's kernels want. All parts have
	// the same Cols; types may differ (Q4_K_M files store V wider than Q and K). The tensors' data
	// is not referenced after Load returns.
	Load(name string, parts ...Tensor) (Weight, error)
	// NewPages allocates a paged KV cache.
	NewPages(KVLayout) (Pages, error)
	// Compile prepares p for batches within limits, over pages.
	Compile(p *Program, pages Pages, limits Limits) (Runner, error)
	Close() error
}

// Info describes a device to people and to the control plane.
type Info struct {
	Name        string // "cpu", "cuda:0"
	Description string // the processor's own name
	Path        string // which kernels run: "avx512", "avx2", "generic" or "go" on processors
	Arithmetic  string // how results are rounded: devices that say the same give the same bits
	PageFormat  string // how a page's bytes are ordered: of the same layout they mean the same wherever it is the same
	Threads     int
	MemoryBytes int64 // what the device may use in total
}

// Type is how a tensor's elements are stored. The layouts of the quantised types are GGUF's.
type Type uint8

// Element types. Block sizes and byte counts: [Type.BlockLen], [Type.BlockBytes].
const (
	F32 Type = iota + 1
	F16
	BF16
	Q4_0
	Q4_1
	Q5_0
	Q5_1
	Q8_0
	Q2_K
	Q3_K
	Q4_K
	Q5_K
	Q6_K
	// I8 is for KV caches alone: a token's K, or V, of one head are bytes that share a binary16 scale.
	I8
)

var types = [...]struct {
	name       string
	len, bytes int
}{
	F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, BF16: {"BF16", 1, 2},
	Q4_0: {"Q4_0", 32, 18}, Q4_1: {"Q4_1", 32, 20}, Q5_0: {"Q5_0", 32, 22}, Q5_1: {"Q5_1", 32, 24}, Q8_0: {"Q8_0", 32, 34},
	Q2_K: {"Q2_K", 256, 84}, Q3_K: {"Q3_K", 256, 110}, Q4_K: {"Q4_K", 256, 144}, Q5_K: {"Q5_K", 256, 176}, Q6_K: {"Q6_K", 256, 210},
	I8: {"I8", 1, 1},
}

// Valid reports whether t is a type of tensors.
func (t Type) Valid() bool { return t >= F32 && t <= Q6_K }

func (t Type) String() string {
	if t < F32 || t > I8 {
		return "unknown"
	}
	return types[t].name
}

// BlockLen is the number of elements that are stored together.
func (t Type) BlockLen() int { return types[t].len }

// BlockBytes is the size of one block.
func (t Type) BlockBytes() int { return types[t].bytes }

// Tensor is a matrix on the host, row-major: Rows outputs of Cols inputs. A vector has one row.
type Tensor struct {
	Type Type
	Rows int
	Cols int // a multiple of Type.BlockLen()
	Data []byte
}

// Weight is a matrix on a device.
type Weight interface {
	Rows() int
	Cols() int
	// Bytes is what it occupies on the device.
	Bytes() int64
}

// KVLayout is the shape of a paged KV cache. A page holds BlockTokens tokens of all layers; or the cache
// has two groups of pages, numbered each from 0 on, and one of the second holds those of the layers with
// a window, one of the first those of the others.
type KVLayout struct {
	Pages       int
	BlockTokens int // a multiple of 16
	Layers      int // in a page of the first group
	// WindowPages and WindowLayers are the second group's; 0 if there is none.
	WindowPages  int
	WindowLayers int
	KVHeads      int
	HeadDim      int
	Type         Type // F32, F16 or I8
}

// scaleBytes is the size of the scale of a token's K, or V, of one head in a cache of I8.
const scaleBytes = 2

// HeadBytes is the size of one token's K, or V, of one head.
func (l KVLayout) HeadBytes() int64 {
	n := int64(l.HeadDim) * int64(l.Type.BlockBytes())
	if l.Type == I8 {
		n += scaleBytes
	}
	return n
}

// Group is the layout of one group alone, 0 or 1.
func (l KVLayout) Group(i int) KVLayout {
	if i == 1 {
		l.Pages, l.Layers = l.WindowPages, l.WindowLayers
	}
	l.WindowPages, l.WindowLayers = 0, 0
	return l
}

// Groups is how many there are.
func (l KVLayout) Groups() int {
	if l.WindowPages > 0 {
		return 2
	}
	return 1
}

// Bytes is the size of all pages.
func (l KVLayout) Bytes() (n int64) {
	for i := range l.Groups() {
		g := l.Group(i)
		n += int64(g.Pages) * g.PageBytes()
	}
	return n
}

// PageBytes is the size of one page, of the first group.
func (l KVLayout) PageBytes() int64 {
	return int64(l.BlockTokens) * int64(l.Layers) * 2 * int64(l.KVHeads) * l.HeadBytes()
}

// Pages is a paged KV cache on a device. Its bytes mean the same on every device with the same layout and
// [Info.PageFormat], so that pages can move between tiers and machines; where [Info.Arithmetic] is the same
// too, and the model, they are the same.
type Pages interface {
	Layout() KVLayout
	// Read copies page, of the first group, into dst, Write the other way; both are
	// [KVLayout.PageBytes] long. The caller sees to it that no submitted step still uses the page.
	Read(page int32, dst []byte) error
	Write(page int32, src []byte) error
	Close() error
}

// Limits bound the batches of a [Runner]; every buffer is allocated for them once.
type Limits struct {
	Rows      int // tokens a step
	Sequences int // sequences a step
	Samples   int // rows that need logits, a step
	Depth     int // submissions in flight; at least 1
}

// Runner runs one program. Submit and Wait may be called from two goroutines, each from one.
type Runner interface {
	// Submit enqueues a step and returns without waiting for it, unless Limits.Depth steps are
	// already in flight. b may be reused once Submit has returned.
	Submit(b *Batch) error
	// Wait blocks until the oldest step that has not been waited for is done, and fills r, whose
	// slices are reused.
	Wait(r *Result) error
	Close() error
}

// Batch is one step, as plain arrays.
type Batch struct {
	// Tokens holds the input of each row. A value t < 0 means the token drawn by sample ^t of the
	// submission before this one, so that a step can be planned while the last one runs.
	Tokens []int32
	// Positions holds each row's absolute position in its sequence.
	Positions []int32
	// Seqs cuts the rows into sequences, in row order, without gaps.
	Seqs []Seq
	// Tables holds the page tables that Seqs point into.
	Tables []int32
	// Copies are done first, in order.
	Copies []PageCopy
	// Samples lists the rows that need logits, ascending by row.
	Samples []Sample
	// History and Bias are what Samples point into; Masks holds bit sets of allowed tokens, each
	// (vocabulary+31)/32 words.
	History []int32
	Bias    []TokenBias
	Masks   []uint32
	// WantLogits returns the raw logits of every sample too. For tests: costs a read-back.
	WantLogits bool
}

// Seq is the part of a batch that belongs to one sequence.
type Seq struct {
	Row  int32 // first row
	Rows int32 // number of rows; their positions are consecutive
	// Table is the offset of its page table in Batch.Tables, WindowTable that of the one for the cache's
	// second group, if it has one. Where every layer of a group has a window, pages that lie behind all
	// windows of the first row are not looked at.
	Table, WindowTable int32
	Context            int32 // tokens in its cache once this step is done: last position + 1
}

// PageCopy copies a whole page of a group.
type PageCopy struct{ From, To, Group int32 }

// TokenBias is added to a token's logit.
type TokenBias struct {
	Token int32
	Bias  float32
}

// Sample says how to draw a token from one row's logits.
//
// The order is: bias, penalties, mask, temperature, min-p, top-k, top-p, draw. Reported
// log-probabilities are of the raw logits. Temperature 0 takes the largest logit, the lowest id
// among equals.
type Sample struct {
	Row int32
	// Score, if not negative, is a token to report the log-probability of; nothing is drawn.
	Score int32

	Temperature float32
	TopK        int32   // 0 keeps all
	TopP        float32 // 1 keeps all
	MinP        float32

	RepetitionPenalty float32 // 1 is none
	PresencePenalty   float32
	FrequencyPenalty  float32
	// History[HistoryStart:HistoryPrompt] are the prompt's tokens, up to HistoryEnd the generated
	// ones: repetition counts both, presence and frequency the generated ones only. A row whose own
	// input is a token reference (Batch.Tokens < 0) counts that token as generated too.
	HistoryStart, HistoryPrompt, HistoryEnd int32

	BiasStart, BiasEnd int32
	Mask               int32 // index of the mask in Batch.Masks, -1 for none

	// The draw is a function of these three alone (and the logits): of word 0 and 1 of Philox4x32-10 with
	// Seed for its key and (Position, Choice, 0, 0) for its counter. So draws of neighbouring seeds,
	// choices or positions have nothing to do with each other.
	Seed     uint64
	Choice   int32
	Position int32

	// Logprobs: -1 none, 0 the chosen token's, n also the n likeliest tokens'.
	Logprobs int32
}

// Result is what a step brings back. Entry i of each belongs to Samples[i].
type Result struct {
	Tokens   []int32   // drawn (or scored) token
	Logprobs []float32 // its log-probability, if asked for
	// Top holds, for each sample with Logprobs > 0, that many entries, likeliest first (equals by
	// id), one sample after the other.
	Top []TokenLogprob
	// Logits are samples × vocabulary, if Batch.WantLogits.
	Logits []float32
}

// TokenLogprob is a token and its log-probability.
type TokenLogprob struct {
	Token   int32
	Logprob float32
}
