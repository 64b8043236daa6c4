// Package transport is how the processes of a cluster reach each other over gRPC, and how clients reach
// them: servers with bounds, connections that say what is wrong when they fail, and the one table of who
// may call what.
//
// There are two kinds of port. That for clients serves what the table opens to them, and asks nobody who he
// is. That of the cluster serves nodes, gateways, workers and operators: with certificates it takes each
// peer for who its certificate says (package trust), and holds it to that, in what it calls and in whose
// name it speaks. Without certificates it takes whoever reaches it for all of them, so it must be reached
// by nobody else.
//
// Invariants, each with a test:
//
//   - Every RPC of every service has one row in the table; one that has none is refused.
//   - A worker speaks for itself only, a gateway only in its own name and a node only of itself.
//   - What strangers can make a port hold is bounded: connections, streams, messages, headers, and the time
//     that each may be idle or take to say who it is.
//
// Of ours the package may import trust and proto only.
package transport
