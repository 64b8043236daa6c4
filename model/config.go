package model

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model/gguf"
)

// ErrUnsupported is wrapped by the error for a model that is well formed but that Quire does not
// compute.
var ErrUnsupported = errors.New("model: unsupported")

// Config is the shape of a model.
type Config struct {
	Arch string // general.architecture
	Name string // general.name; may be empty

	Layers, Hidden, FFN     int
	Heads, KVHeads, HeadDim int
	Vocab                   int
	ContextLength           int // tokens that the model was made for

	RMSEps   float32
	RopeBase float32
	// RopeScale divides positions: 1, or the factor of linear scaling.
	RopeScale float32
	HalfPairs bool // rotary pairs are (i, i+HeadDim/2), not (2i, 2i+1)

	// Windows is how many tokens, itself included, a token attends to in each layer; 0 is all. Nil if
	// no layer has a window.
	Windows []int
}

// Window is that of a layer.
func (c Config) Window(layer int) int {
	if c.Windows == nil {
		return 0
	}
	return c.Windows[layer]
}

// Windowed is how many layers have a window, and the widest of them; 0 if none has.
func (c Config) Windowed() (layers, widest int) {
	for _, w := range c.Windows {
		if w > 0 {
			layers++
			widest = max(widest, w)
		}
	}
	return layers, widest
}

// architecture is what tells the members of the Llama family apart.
type architecture struct {
	halfPairs bool
	qkvBias   bool // biases must be there; if not set they may be
}

var architectures = map[string]architecture{
	"llama": {},
	"qwen2": {halfPairs: true, qkvBias: true},
}

// KVLayout is the layout of a paged KV cache for the model, with elements of type t.
func (c Config) KVLayout(pages, blockTokens int, t device.Type) device.KVLayout {
	return device.KVLayout{Pages: pages, BlockTokens: blockTokens, Layers: c.Layers, KVHeads: c.KVHeads, HeadDim: c.HeadDim, Type: t}
}

// GroupedKVLayout is KVLayout with the layers that have a window in a second group of windowPages pages.
func (c Config) GroupedKVLayout(pages, windowPages, blockTokens int, t device.Type) device.KVLayout {
	l := c.KVLayout(pages, blockTokens, t)
	l.WindowPages = windowPages
	l.WindowLayers, _ = c.Windowed()
	l.Layers -= l.WindowLayers
	return l
}

// Limits on what a file may claim, so that products of them cannot overflow.
const (
	maxLayers  = 1 << 12
	maxWidth   = 1 << 20
	maxVocab   = 1 << 22
	maxContext = 1 << 24
	maxHeadDim = 1 << 10
)

// configReader collects the first error, so that reading a config is one straight list.
type configReader struct {
	f    *gguf.File
	arch string
	err  error
}

func (r *configReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// number reads an integer key of the architecture between 1 and limit; fallback stands in for a
// missing one, unless it is 0.
func (r *configReader) number(key string, limit, fallback int) int {
	key = r.arch + "." + key
	if !r.f.Has(key) {
		if fallback == 0 {
			r.fail("metadata key %q is missing", key)
		}
		return fallback
	}
	v, ok := r.f.Uint(key)
	switch {
	case !ok:
		r.fail("metadata key %q is of type %s or negative; a positive integer is wanted", key, r.f.TypeOf(key))
	case v == 0 || v > uint64(limit):
		r.fail("metadata key %q is %d; 1 to %d are supported", key, v, limit)
	}
	return int(v)
}

// float reads a positive number; fallback stands in for a missing one, unless it is 0.
func (r *configReader) float(key string, fallback float64) float32 {
	key = r.arch + "." + key
	if !r.f.Has(key) {
		if fallback == 0 {
			r.fail("metadata key %q is missing", key)
		}
		return float32(fallback)
	}
	v, ok := r.f.Float(key)
	switch {
	case !ok:
		r.fail("metadata key %q is of type %s; a floating-point number is wanted", key, r.f.TypeOf(key))
	case !(float32(v) > 0) || math.IsInf(float64(float32(v)), 0):
		r.fail("metadata key %q is %v; it must be positive and finite", key, v)
	}
	return float32(v)
}

// absent refuses keys that change the computation in a way that is not written here.
func (r *configReader) absent(keys ...string) {
	for _, key := range keys {
		key = r.arch + "." + key
		if n, ok := r.f.Uint(key); ok && n == 0 {
			continue
		}
		if r.f.Has(key) {
			r.fail("%w: metadata key %q", ErrUnsupported, key)
		}
	}
}

// readConfig reads the shape of a model from its file.
func readConfig(f *gguf.File) (Config, error) {
	name, ok := f.String("general.architecture")
	if !ok {
		return Config{}, errors.New(`metadata key "general.architecture" is missing or no string`)
	}
	arch, ok := architectures[name]
	if !ok {
		return Config{}, fmt.Errorf("%w: architecture %q; known are %s", ErrUnsupported, name, strings.Join(slices.Sorted(maps.Keys(architectures)), ", "))
	}
	r := configReader{f: f, arch: name}
	c := Config{
		Arch:          name,
		Layers:        r.number("block_count", maxLayers, 0),
		Hidden:        r.number("embedding_length", maxWidth, 0),
		FFN:           r.number("feed_forward_length", maxWidth, 0),
		Heads:         r.number("attention.head_count", maxWidth, 0),
		ContextLength: r.number("context_length", maxContext, 0),
		RMSEps:        r.float("attention.layer_norm_rms_epsilon", 0),
		RopeBase:      r.float("rope.freq_base", 10000),
		RopeScale:     1,
		HalfPairs:     arch.halfPairs,
	}
	c.Name, _ = f.String("general.name")
	c.KVHeads = r.number("attention.head_count_kv", maxWidth, c.Heads)
	if r.err != nil {
		return Config{}, r.err
	}
	if c.Hidden%c.Heads != 0 && !f.Has(name+".attention.key_length") {
		return Config{}, fmt.Errorf("%s.embedding_length %d is no multiple of %s.attention.head_count %d", name, c.Hidden, name, c.Heads)
	}
	c.HeadDim = r.number("attention.key_length", maxHeadDim, max(c.Hidden/c.Heads, 1))
	if v := r.number("attention.value_length", maxHeadDim, c.HeadDim); v != c.HeadDim {
		r.fail("%w: %s.attention.value_length %d beside key_length %d", ErrUnsupported, name, v, c.HeadDim)
	}
	if d := r.number("rope.dimension_count", maxHeadDim, c.HeadDim); d != c.HeadDim {
		r.fail("%w: %s.rope.dimension_count %d of heads of %d", ErrUnsupported, name, d, c.HeadDim)
	}
	if c.HeadDim%2 != 0 || c.HeadDim > maxHeadDim {
		r.fail("%w: heads of %d columns; even numbers up to %d are supported", ErrUnsupported, c.HeadDim, maxHeadDim)
	}
	if c.Heads%c.KVHeads != 0 {
		r.fail("%s.attention.head_count %d is no multiple of %s.attention.head_count_kv %d", name, c.Heads, name, c.KVHeads)
	}
	r.absent("expert_count", "attention.scale", "attention.logit_softcapping", "final_logit_softcapping", "logit_scale", "embedding_scale", "residual_scale", "attention.clamp_kqv", "attention.max_alibi_bias")
	r.ropeScaling(&c)
	r.windows(&c)
	r.vocab(&c)
	return c, r.err
}

// windows reads which layers attend to a sliding window only. attention.sliding_window_pattern says
// for each layer whether it does, or n: the last of every n layers does not. Without it all do.
func (r *configReader) windows(c *Config) {
	const window, pattern = "attention.sliding_window", "attention.sliding_window_pattern"
	if n, ok := r.f.Uint(r.arch + "." + window); !r.f.Has(r.arch+"."+window) || ok && n == 0 {
		return
	}
	n := r.number(window, math.MaxInt32, 0)
	windowed := r.pattern(pattern, c.Layers)
	if r.err != nil || n >= c.ContextLength || !slices.Contains(windowed, true) {
		return
	}
	c.Windows = make([]int, c.Layers)
	for i := range c.Windows {
		if windowed[i] {
			c.Windows[i] = n
		}
	}
}

// pattern reads which of layers the key means: a list of booleans or integers, or the length of a
// period whose last layer is left out.
func (r *configReader) pattern(key string, layers int) []bool {
	key = r.arch + "." + key
	in := slices.Repeat([]bool{true}, layers)
	if !r.f.Has(key) {
		return in
	}
	if n, ok := r.f.Uint(key); ok {
		for i := range in {
			in[i] = n == 0 || uint64(i)%n < n-1
		}
		return in
	}
	if list, ok := r.f.Ints(key); ok {
		in = in[:0]
		for _, v := range list {
			in = append(in, v != 0)
		}
	} else if in, ok = r.f.Bools(key); !ok {
		r.fail("metadata key %q is of type %s; an integer, or a list of booleans or integers, is wanted", key, r.f.TypeOf(key))
		return nil
	}
	if len(in) != layers {
		r.fail("metadata key %q has %d entries for %d layers", key, len(in), layers)
	}
	return in
}

// ropeScaling reads how positions beyond the trained ones are squeezed. The per-pair factors of
// Llama 3 are a tensor, found when loading.
func (r *configReader) ropeScaling(c *Config) {
	r.absent("rope.scale_linear") // what came before rope.scaling
	key := r.arch + ".rope.scaling.type"
	if !r.f.Has(key) {
		return
	}
	switch kind, _ := r.f.String(key); kind {
	case "none", "llama3":
	case "linear":
		c.RopeScale = r.float("rope.scaling.factor", 0)
	default:
		r.fail("%w: %s %q; none, linear and llama3 are known", ErrUnsupported, key, kind)
	}
}

// vocab takes the number of tokens from the embedding, which is what is computed with.
func (r *configReader) vocab(c *Config) {
	embed, ok := r.f.Tensor("token_embd.weight")
	if !ok {
		r.fail("tensor %q is missing", "token_embd.weight")
		return
	}
	if rows := embed.Rows(); rows > maxVocab {
		r.fail("tensor %q has %d rows; at most %d tokens are supported", embed.Name, rows, maxVocab)
	}
	c.Vocab = int(embed.Rows())
	if v := r.number("vocab_size", maxVocab, c.Vocab); v != c.Vocab {
		r.fail("%s.vocab_size is %d, but tensor %q has %d rows", r.arch, v, embed.Name, c.Vocab)
	}
}
