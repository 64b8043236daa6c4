package check

import "github.com/quire-serve/quire/scheduler/rpc"

const (
	// MaxRequestIDBytes bounds ids of requests: a tenant's name, a client's key, and what tells the prompts of
	// one call apart.
	MaxRequestIDBytes = 2 * rpc.MaxIDBytes
	// MaxPatienceMS bounds how long a request may say that it can wait: a day.
	MaxPatienceMS = 24 * 60 * 60 * 1000
	// MaxChoices bounds a request's choices.
	MaxChoices = 128
	// MaxRequestBytes bounds a request's encoded size: what a gRPC message takes by default, less room for what
	// is around it.
	MaxRequestBytes = 4<<20 - 64<<10
	// OnePieceBytes is the size up to which a request goes into the log in one piece. Of a larger one the
	// prompt goes in parts before it, and what is not prompt is bounded by BodyBytes.
	OnePieceBytes = 400 << 10
	BodyBytes     = 128 << 10
	// MaxWorkerBytes bounds what a worker says of itself, encoded.
	MaxWorkerBytes = 12 << 10
)
