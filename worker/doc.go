// Package worker is a worker node: an engine with its device, the Worker service that gateways
// attach to, and the session with the leader that work comes from.
//
//	leader ── dispatch, revoke ──▶ session ──▶ engine ──▶ outbox ──▶ one stream per gateway
//	       ◀─ heartbeats, progress, ends ──               (keeps what was generated)
//
// The engine never waits for anyone: what it generates goes into the outbox, and each gateway's
// stream is a cursor over the outbox that moves as fast as that gateway reads. A gateway that comes
// back says what it has and gets the rest, as long as the outbox keeps it; what has ended is kept for
// a while and within bounds.
//
// The leader is told the tokens as well (reports.go), at every checkpoint those of what runs and with
// an end the rest, so that a request can go on elsewhere when the worker is lost, and its answer be
// read again. Without a leader everything runs and streams on; the next one hears all of it.
//
// A worker that drains hands what it does not finish back, and stays for a while to serve the KV cache of
// these requests (blocks.go) to the workers that go on with them (peers.go). The leader's dispatch names the
// worker that does, whoever goes on asks it once for each request, and when all were asked for, or after
// HandOverTimeout, it ends. Pages travel with the name of their layout and a checksum; whatever is not
// there, late or damaged is computed instead, and no client hears of it.
//
// Invariants, each with a test:
//
//   - A dispatch of a term older than the newest seen is refused.
//   - A request that is dispatched again while it runs, or after it ended, is not run twice.
//   - Every end is told to the leader at least once, over as many sessions as it takes; ends
//     carry the dispatch that they end, so that an old one ends nothing.
//   - A leader's session hears each token since the dispatch once, in order and before or with the end.
//   - A request streams to one gateway; what is revoked is heard of by none.
//   - What is handed back comes with every token that was generated.
//   - Blocks are served only by an engine that has stopped, so that all that it names is final.
//   - A slow or absent gateway delays no one.
//
// The package knows no gateway and no Raft: it imports engine, model, device, transport and the wire API.
package worker
