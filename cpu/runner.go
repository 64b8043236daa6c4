package cpu

import (
	"sync"

	"github.com/quire-serve/quire/device"
)

// runner executes one plan. Submit copies a batch into one of Depth slots; a goroutine takes slots
// in order, copies pages, resolves token references from the step before, runs the phases and
// samples; Wait copies a slot's result out and frees it.
type runner struct {
	dev   *Device
	plan  *plan
	pages *pages
	exec  executor
	bytes int64

	mu                      sync.Mutex
	changed                 sync.Cond
	submitted, done, waited int // counts; slot i%depth
	closed                  bool
	stopped                 chan struct{}

	slots       []slot
	lastSamples int       // of the newest submission; Submit's
	lastTokens  []int32   // of the newest step done; the goroutine's
	logits      []float32 // [samples, vocabulary]; the goroutine's
	samplers    []sampler // one a thread
}

// slot is a batch and its result.
type slot struct {
	batch  device.Batch
	tokens []int32 // the batch's, with references resolved
	rows   []int32 // sampled rows
	result device.Result
}

var _ device.Runner = (*runner)(nil)

func newRunner(d *Device, p *plan, kv *pages, exec executor, bytes int64) *runner {
	r := &runner{dev: d, plan: p, pages: kv, exec: exec, bytes: bytes, stopped: make(chan struct{}),
		slots: make([]slot, p.limits.Depth), logits: make([]float32, p.limits.Samples*int(p.vocab))}
	r.changed.L = &r.mu
	r.samplers = make([]sampler, min(d.kern.threads(), max(1, p.limits.Samples)))
	for i := range r.samplers {
		r.samplers[i].kern = d.kern
	}
	go r.loop()
	return r
}

// Submit checks and copies b. An invalid batch is an error and changes nothing.
func (r *runner) Submit(b *device.Batch) error {
	if err := r.plan.checkBatch(b, r.pages.layout, r.lastSamples); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.submitted-r.waited == len(r.slots) && !r.closed {
		r.changed.Wait()
	}
	if r.closed {
		return device.ErrClosed
	}
	r.slots[r.submitted%len(r.slots)].fill(b)
	r.lastSamples = len(b.Samples)
	r.submitted++
	r.changed.Broadcast()
	return nil
}

// fill copies b, reusing the slot's memory.
func (s *slot) fill(b *device.Batch) {
	c := &s.batch
	c.Tokens = append(c.Tokens[:0], b.Tokens...)
	c.Positions = append(c.Positions[:0], b.Positions...)
	c.Seqs = append(c.Seqs[:0], b.Seqs...)
	c.Tables = append(c.Tables[:0], b.Tables...)
	c.Copies = append(c.Copies[:0], b.Copies...)
	c.Samples = append(c.Samples[:0], b.Samples...)
	c.History = append(c.History[:0], b.History...)
	c.Bias = append(c.Bias[:0], b.Bias...)
	c.Masks = append(c.Masks[:0], b.Masks...)
	c.WantLogits = b.WantLogits
	s.rows = s.rows[:0]
	for i := range b.Samples {
		s.rows = append(s.rows, b.Samples[i].Row)
	}
}

// Wait fills res with the oldest result.
func (r *runner) Wait(res *device.Result) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.waited == r.done {
		if r.closed && r.waited == r.submitted {
			return device.ErrClosed
		}
		r.changed.Wait()
	}
	from := &r.slots[r.waited%len(r.slots)].result
	res.Tokens = append(res.Tokens[:0], from.Tokens...)
	res.Logprobs = append(res.Logprobs[:0], from.Logprobs...)
	res.Top = append(res.Top[:0], from.Top...)
	res.Logits = append(res.Logits[:0], from.Logits...)
	r.waited++
	r.changed.Broadcast()
	return nil
}

// Close lets the submitted steps finish and stops. Their results can still be waited for.
func (r *runner) Close() error {
	r.mu.Lock()
	first := !r.closed
	r.closed = true
	r.changed.Broadcast()
	r.mu.Unlock()
	<-r.stopped
	if first {
		r.exec.close()
		r.dev.release(r.bytes)
	}
	return nil
}

func (r *runner) loop() {
	defer close(r.stopped)
	for {
		r.mu.Lock()
		for r.done == r.submitted && !r.closed {
			r.changed.Wait()
		}
		if r.done == r.submitted {
			r.mu.Unlock()
			return
		}
		s := &r.slots[r.done%len(r.slots)]
		r.mu.Unlock()

		r.execute(s)

		r.mu.Lock()
		r.done++
		r.changed.Broadcast()
		r.mu.Unlock()
	}
}

// execute runs one step: copies, references, phases, samples.
func (r *runner) execute(s *slot) {
	b := &s.batch
	for _, c := range b.Copies {
		size := r.pages.layout.Group(int(c.Group)).PageBytes()
		mem := groupMemory(r.pages.layout, r.pages.mem, int(c.Group))
		copy(mem[int64(c.To)*size:int64(c.To+1)*size], mem[int64(c.From)*size:int64(c.From+1)*size])
	}
	s.tokens = append(s.tokens[:0], b.Tokens...)
	for i, t := range s.tokens {
		if t < 0 {
			s.tokens[i] = r.lastTokens[^t]
		}
	}
	logits := r.logits[:len(b.Samples)*int(r.plan.vocab)]
	r.exec.run(&step{tokens: s.tokens, positions: b.Positions, seqs: b.Seqs, tables: b.Tables, sampleRows: s.rows, logits: logits})
	r.sample(s, logits)
	r.lastTokens = append(r.lastTokens[:0], s.result.Tokens...)
}
