// Package state is what the replicated log means: the tables of nodes, workers and requests, and what
// each command does to them.
//
// A Store is a function of the entries applied to it and of nothing else. Two nodes that applied
// the same log hold the same tables, byte for byte, and the same chain hash over the entries. So
// there is no clock here (the only time is the log's, which leaders count on in their entries and which
// never goes back), no
// randomness, and no order that comes from a Go map. Commands may repeat: submitting a known id,
// assigning what is not queued and finishing what has finished change nothing.
//
// A request goes one way, except when its worker is lost:
//
//	           submit          assign             finish
//	(unknown) ───────▶ queued ───────▶ assigned ─────────▶ finished ──▶ (forgotten)
//	                     ▲ │  requeue      │                  ▲
//	                     └─┼───────────────┘                  │
//	                       └──────────────────────────────────┘
//
// A record holds what the log knows of the output. It only grows: what does not follow what is known
// changes nothing, so that progress may come twice, late and out of order.
//
// A finished request drops its prompt and keeps its digest, so that a retry is still recognised, and
// its output, so that the answer can be given again. How long, how many and how much memory that may be,
// of a tenant and in all, is in the log (Retention); the oldest of whoever has too much go first, answers
// before ids. An answer is kept whole or not at all. A finished request can be submitted to run again; it begins with the answer
// that is kept.
//
// Readers take a View, an immutable picture that costs nothing to take and never blocks Apply.
// Snapshots are such views written out as length-delimited records, header first.
//
// An entry that this version does not know in full is refused with ErrUnknownCommand: a node that
// skipped it would silently diverge, so its caller must stop instead.
//
// The package must not import gRPC, cgo, the clock, or any other package of the control plane.
package state
