package scheduler

import (
	"google.golang.org/protobuf/proto"

	"github.com/quire-serve/quire/kvcache"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/state"
)

// What a request takes of the leader's memory while it waits, as TestQueueBytesAreReal measures it. Most
// of it is there twice: as it came, and as the log has it.
const (
	// waitingBytes is for everything of a request that has no length of its own.
	waitingBytes = 4 << 10
	// promptTokenBytes is for a token of the prompt, bodyByteBytes for an encoded byte of the rest.
	promptTokenBytes = 2 * 4
	bodyByteBytes    = 2 * 3
	// choiceStateBytes is for a choice that has begun, outputTokenBytes for a token of its output.
	choiceStateBytes = 2 * 128
	outputTokenBytes = 2 * 4
)

// memoryOf is what a request takes that has not begun.
func memoryOf(r *pb.Request, hashes []kvcache.Hash) int {
	return waitingBytes + promptTokenBytes*len(r.GetPrompt()) + bodyByteBytes*proto.Size(state.WithPrompt(r, nil)) + len(kvcache.Hash{})*len(hashes)
}

// outputBytes is what it takes beyond that once it has begun.
func (r *live) outputBytes() int {
	return choiceStateBytes*len(r.outputs) + outputTokenBytes*r.held
}
