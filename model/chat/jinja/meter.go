package jinja

import (
	"context"
	"fmt"
)

// Limits are what one rendering may spend.
type Limits struct {
	// Steps bounds the work: evaluations, and bytes and elements looked at or built, 64 bytes a step.
	Steps int
	// Bytes bounds the memory of everything that is built, whether it is still in use or not.
	Bytes int
}

const (
	bytesPerStep = 64
	elementBytes = 64 // of a list's element or an object's member, beside its own
	scopeBytes   = 512
	spanBytes    = 16
	// maxDepth bounds evaluations inside evaluations, and so the stack. A macro's call takes about ten.
	maxDepth = 2000
	// maxNesting bounds how deeply brackets and blocks nest in a template, and values in each other.
	maxNesting = 200
)

// Error is what is wrong with a template, or with what it did.
type Error struct {
	Line int // of the template, from 1; 0 where unknown
	Text string
	// Limit says that a limit was reached; Raised, that the template refused with raise_exception,
	// Text being its reason.
	Limit, Raised bool
}

func (e *Error) Error() string {
	if e.Line == 0 || e.Raised {
		return e.Text
	}
	return fmt.Sprintf("line %d: %s", e.Line, e.Text)
}

func fail(format string, args ...any) {
	panic(&Error{Text: fmt.Sprintf(format, args...)})
}

// meter is what is left of the limits.
type meter struct {
	limits       Limits
	steps, bytes int
	ctx          context.Context
	left         bool // ctx has ended
}

// stepsPerLook is how often a rendering looks whether it is still wanted: some microseconds.
const stepsPerLook = 1024

// step pays for n steps.
func (m *meter) step(n int) {
	if n > m.steps {
		panic(&Error{Limit: true, Text: fmt.Sprintf("the limit of %d steps is reached", m.limits.Steps)})
	}
	before := m.steps
	m.steps -= n
	if before/stepsPerLook != m.steps/stepsPerLook && m.ctx.Err() != nil {
		m.left = true
		fail("nobody wants the text any more")
	}
}

// scan pays for looking through n bytes.
func (m *meter) scan(n int) { m.step(1 + n/bytesPerStep) }

// alloc pays for building n bytes.
func (m *meter) alloc(n int) {
	m.scan(n)
	if n > m.bytes {
		panic(&Error{Limit: true, Text: fmt.Sprintf("the limit of %d bytes is reached", m.limits.Bytes)})
	}
	m.bytes -= n
}

// elements pays for a list or object of n elements.
func (m *meter) elements(n int) {
	// n may come from a template; the product must not overflow.
	m.step(n)
	m.alloc(n * elementBytes)
}
