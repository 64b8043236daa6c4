package engine

import pb "github.com/quire-serve/quire/proto/quire/v1"

// Event is news of one choice of one request.
type Event struct {
	RequestID string
	GatewayID string
	Choice    int32
	// First is the position of Tokens[0] among the choice's generated tokens.
	First int32
	// Tokens are newly generated. The slice is valid until the sink returns.
	Tokens []int32
	// Logprobs has an entry a token if the request asked for them.
	Logprobs []*pb.Logprobs
	// PromptLogprobs come once, with choice 0's first tokens, if asked for.
	PromptLogprobs []*pb.Logprobs
	// Finish is set on a choice's last event.
	Finish pb.FinishReason
	// StopReason is the stop string, or the stop token's id, that ended the choice.
	StopReason string
	// Error says why a choice ended with an error or an abort.
	Error string
	// Returned is set on the last events of choices whose request was handed back: it did not end, and
	// somebody else, or this engine if it is added again, can run it.
	Returned bool
	// CachedTokens are prompt tokens that came from the prefix cache.
	CachedTokens int32
	// Opening is set on the request's first event, with how long it waited from Add to its first step,
	// and from there to its first token, in microseconds (-1: it never got there).
	Opening            bool
	QueueUS, PrefillUS int64
	// Done is set on a request's last event, together with Usage.
	Done  bool
	Usage Usage
}

// Usage counts a request's tokens over all its choices.
type Usage struct {
	PromptTokens     int32
	CompletionTokens int32
	CachedTokens     int32
}

// Sink takes all events of a step. It is called from the engine's loop and must not block; events
// and their Tokens are valid until it returns.
type Sink func(events []Event)
