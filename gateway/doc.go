// Package gateway is Quire's front door: the OpenAI HTTP API and the gRPC Inference service.
//
// It turns text into tokens and back and owns a request towards its client; it decides nothing about
// where or when the request runs. A request is admitted through the leader ([pb.ControlClient]), and
// its tokens come straight from the worker that runs it, over one Attach stream a worker that carries
// one message a step, whatever the number of requests.
//
// Invariants:
//
//   - Nothing is shown to a client before the admission is committed.
//   - A token is shown once: events are placed by their position, repeats are dropped, and output of
//     an older dispatch than the newest seen is dropped too.
//   - A slow client delays nobody: the goroutine that reads a worker's stream only appends to the
//     requests' token lists, whose length max_tokens and the context bound, and never waits.
//   - When the client goes, its request is aborted, at the worker and at the leader.
//   - All tokens of a live request are kept until it ends, so that it can be continued elsewhere.
//
// The package imports of ours only proto, model/tokenizer and model/chat: it never loads weights.
package gateway
