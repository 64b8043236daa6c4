// Package device is the contract between the engine and the hardware.
//
// A model's forward pass is written once, as a [Program]: a list of operations over activation
// buffers. A device compiles it for a [Limits] bucket, allocates every buffer then, and runs it a
// step at a time: one [Runner.Submit] carries a whole step as plain arrays ([Batch]) and returns
// before the step is done; [Runner.Wait] brings back the sampled tokens and the log-probabilities
// that were asked for, and nothing else. That is the shape a GPU wants (persistent buffers, one
// graph launch a step, no read-back of logits) and costs a CPU nothing.
//
// Invariants every device keeps, each with a test:
//
//   - A row's result depends on that row's sequence alone, bit for bit: not on the other rows of
//     the batch, how a prompt was cut into chunks, where its pages lie, or how many threads ran.
//   - Submissions run in order. Page copies of a batch happen before its operations.
//   - A device holds no policy: it gets page tables and copy lists and never chooses a page.
//
// The package imports nothing of ours, no clock and no cgo.
package device
