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
//   - A token is shown once: events are placed by their position, repeats are dropped, what does not
//     follow is asked for again, and output of a dispatch that is fenced off is dropped.
//   - The text of a choice is a function of how many of its tokens it comes from. So a count of tokens
//     says where a client is, and any gateway can go on from there.
//   - A slow client delays nobody: the goroutine that reads a worker's stream only appends to the
//     requests' token lists, whose length max_tokens and the context bound, and never waits.
//   - A request has any number of readers here. When the last one goes it is aborted, at the worker and
//     at the leader: at once, or after a grace if its client named it and so can come back.
//   - All tokens of a live request are kept until it ends. When its worker is lost the leader gets them,
//     at one moment with the fence: what is not given back is not shown.
//   - Nothing is waited for for ever: what is silent is asked after, every retry has an end.
//
// DESIGN.md tells why streams are as they are.
//
// The package imports of ours only proto, transport and what turns text into tokens: it never loads weights.
package gateway
