// Package scheduler is the control plane: it admits requests through a replicated log, keeps the
// queue, and hands requests to workers when these can start them. Tokens never pass through it.
//
// A Scheduler is one node. It serves pb.Control while it leads; otherwise it answers
// FAILED_PRECONDITION with the leader's address in the quire-leader trailer. What the log means is
// in scheduler/state, who gets what in scheduler/batch, how nodes agree in scheduler/consensus, which
// nodes there are in scheduler/membership. Here is the shell around them: calls, streams, timers, and
// the loop that makes one log entry of all that an instant brought. DESIGN.md follows a request
// through it.
//
// Invariants:
//
//   - An admitted request's output never changes, whatever dies: the log and the gateways know a part
//     of it, and the next worker goes on after the longest.
//   - Submit returns only after the admission is committed; from then on the request ends in the log,
//     whatever dies. The same id with the same body is one request, on any node, for as long as its
//     end is remembered.
//   - Everything replicated is in state.Store. Everything else belongs to the leader's memory, is
//     built from the store after a barrier, and is dropped when leadership ends.
//   - A dispatch carries the term that the leader provably led in and a number that only grows, so
//     that workers and gateways can tell what is newest.
//   - One goroutine proposes entries, one learns their fate, both in order. leader.mu guards the
//     leader's memory; session.mu and watcher.mu are taken inside it, never around it. Nothing waits
//     for the network or the disk under leader.mu.
//   - Queues, messages, entries, attempts and remembered ends are bounded; the bounds are in
//     settings.go.
//
// The package must not import devices, models, workers or gateways.
package scheduler
