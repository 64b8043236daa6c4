package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/quire-serve/quire/device"
)

// turner takes a planner and its device through steps.
type turner struct {
	plan   *planner
	runner device.Runner
	now    func() time.Time
	result device.Result
}

// turn plans a step and submits it, and waits for the oldest in flight if as many are as may be, or nothing
// was planned. It reports whether it did anything, and returns an error if the device is gone for good.
func (t *turner) turn() (did bool, err error) {
	p := t.plan
	began := t.now()
	planned := p.plan(began.UnixMicro())
	if planned {
		p.trace.Plan = t.now().Sub(began)
		if err := t.runner.Submit(&p.batch); err != nil {
			return true, t.refused(fmt.Errorf("submit: %w", err))
		}
	}
	flying := p.inFlight()
	if flying == 0 || planned && flying < p.Depth {
		return planned, nil
	}
	if err := t.wait(); err != nil {
		// The steps behind it build on its tokens: they run out and are dropped.
		for range flying - 1 {
			t.drop()
		}
		return true, t.failed(err)
	}
	return true, nil
}

// wait waits for the oldest step and books what it gave.
func (t *turner) wait() error {
	if err := t.runner.Wait(&t.result); err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	t.plan.accept(&t.result, t.now().UnixMicro())
	return nil
}

func (t *turner) drop() {
	if err := t.runner.Wait(&t.result); err != nil {
		t.plan.Logger.Error("step failed", slog.Any("error", err))
	}
}

// refused handles a step that the device did not take. The one before it may well be good: its tokens count.
func (t *turner) refused(cause error) error {
	p := t.plan
	p.number--
	for p.inFlight() > 0 {
		if err := t.wait(); err != nil {
			p.Logger.Error("step failed", slog.Any("error", err))
			break
		}
	}
	p.number++
	return t.failed(cause)
}

// failed handles the loss of all steps in flight.
func (t *turner) failed(cause error) error {
	p := t.plan
	p.Logger.Error("step failed", slog.Any("error", cause))
	p.fail(cause)
	if p.faults.gone() || errors.Is(cause, device.ErrClosed) {
		return fmt.Errorf("engine: device is gone: %w", cause)
	}
	return nil
}

// settle waits for all steps in flight.
func (t *turner) settle() error {
	for t.plan.inFlight() > 0 {
		if err := t.wait(); err != nil {
			return err
		}
	}
	return nil
}
