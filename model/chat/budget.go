package chat

import (
	"fmt"
	"time"

	"github.com/ardanlabs/jinja"
)

// The interpreter has no limits of its own: a macro that calls itself would end the process by
// exhausting its stack. So prepare adds a call of one of these functions to the beginning of every
// loop's and macro's body, where a budget counts it.
const (
	roundName = "quire_round"
	callName  = "quire_call"
)

// budget is what one rendering may still spend.
type budget struct {
	now           func() time.Time
	deadline      time.Time
	rounds, calls int
	err           error // the first error of a function that the template called
}

func (b *budget) fail(err error) (jinja.Value, error) {
	if b.err == nil {
		b.err = err
	}
	return jinja.Undefined(), err
}

// define adds the functions that templates expect of their environment.
func (b *budget) define(data map[string]jinja.Value) {
	b.deadline = b.now().Add(maxTime)
	function := func(name string, f func(args []jinja.Value) (jinja.Value, error)) {
		data[name] = jinja.NewCallable(name, func(args []jinja.Value, _ map[string]jinja.Value) (jinja.Value, error) { return f(args) })
	}
	function(roundName, func([]jinja.Value) (jinja.Value, error) {
		if b.rounds++; b.rounds > maxRounds {
			return b.fail(fmt.Errorf("%w: %d rounds of loops", ErrTooLarge, maxRounds))
		}
		return b.tick(b.rounds)
	})
	function(callName, func([]jinja.Value) (jinja.Value, error) {
		if b.calls++; b.calls > maxCalls {
			return b.fail(fmt.Errorf("%w: %d calls of macros", ErrTooLarge, maxCalls))
		}
		return b.tick(b.calls)
	})
	function("raise_exception", func(args []jinja.Value) (jinja.Value, error) {
		reason := "no reason given"
		if len(args) > 0 {
			reason = text(args[0])
		}
		return b.fail(fmt.Errorf("%w: %s", ErrRejected, reason))
	})
	function("strftime_now", func(args []jinja.Value) (jinja.Value, error) {
		format := "%Y-%m-%d"
		if len(args) > 0 {
			format = text(args[0])
		}
		text, err := strftime(b.now(), format)
		if err != nil {
			return b.fail(err)
		}
		return jinja.NewString(text), nil
	})
	data[jsonName] = jinja.NewCallable(jsonName, func(args []jinja.Value, named map[string]jinja.Value) (jinja.Value, error) {
		out, err := toJSON(args, named)
		if err != nil {
			return b.fail(err)
		}
		return jinja.NewString(out), nil
	})
	function("range", func(args []jinja.Value) (jinja.Value, error) {
		items, err := numberRange(args)
		if err != nil {
			return b.fail(err)
		}
		return jinja.NewList(items), nil
	})
}

// tick looks at the clock now and then.
func (b *budget) tick(n int) (jinja.Value, error) {
	if n%256 == 0 && b.now().After(b.deadline) {
		return b.fail(fmt.Errorf("%w: %v", ErrTooLarge, maxTime))
	}
	return jinja.NewString(""), nil
}

// numberRange is Python's range as a list.
func numberRange(args []jinja.Value) ([]jinja.Value, error) {
	n := []int64{0, 0, 1}
	if len(args) == 0 || len(args) > 3 {
		return nil, fmt.Errorf("chat: range takes one to three numbers, not %d", len(args))
	}
	for i, a := range args {
		if !a.IsInt() {
			return nil, fmt.Errorf("chat: range takes integers, not %s", text(a))
		}
		if len(args) == 1 {
			i = 1
		}
		n[i] = a.AsInt()
	}
	start, stop, step := n[0], n[1], n[2]
	if step == 0 {
		return nil, fmt.Errorf("chat: the step of a range must not be zero")
	}
	var items []jinja.Value
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		if len(items) == maxRange {
			return nil, fmt.Errorf("%w: a range of more than %d numbers", ErrTooLarge, maxRange)
		}
		items = append(items, jinja.NewInt(i))
	}
	return items, nil
}
