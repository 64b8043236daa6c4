package engine

import "errors"

var (
	// ErrQueueFull means that the queue's bound of requests or tokens was reached.
	ErrQueueFull = errors.New("engine: queue is full")
	// ErrTooLong means that a request can never fit: in the context or in the block pool.
	ErrTooLong = errors.New("engine: request can never fit")
	// ErrInvalid means that a field of the request is out of its range.
	ErrInvalid = errors.New("engine: invalid request")
	// ErrDuplicate means that a request with this id is live.
	ErrDuplicate = errors.New("engine: duplicate request id")
	// ErrDraining means that the engine takes nothing new.
	ErrDraining = errors.New("engine: draining")
	// ErrGone means that Run has returned, so that nobody does what was asked for.
	ErrGone = errors.New("engine: not running any more")
)
