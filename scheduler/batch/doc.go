// Package batch is the continuous batcher of the control plane: given the queue, what the workers
// said of themselves, and the time, it decides which requests go to which workers now.
//
// It binds late. A request leaves the queue only when a worker can start it: when the worker has
// room for its sequences, its blocks and its prompt tokens, counting what was sent to it since its
// newest heartbeat. Until then the request stays where every worker may still take it, so that
// nobody waits behind a stranger while another worker idles.
//
// Requests are taken in this order: priority class, with a reserve of one token in eight for the less
// urgent ones; then, among tenants, the one that was served the fewest tokens by its weight; then, within
// a tenant, the earliest deadline, then arrival. All three are shares of what is served, none is a matter
// of age, so that no backlog passes another's share and no class is turned over. Requests that have run
// and lost their worker go first in their class.
//
// The queue is indexed by what requests need (tree.go), so that a plan finds what fits behind any number
// of requests that do not. When the first request fits nowhere and others have passed it for PassMS, a
// worker is kept for it, and whoever does not delay it may still go there (reserve.go).
//
// Which worker gets a request is a policy. The default goes where the first token is predicted
// soonest: the work that waits there, and the part of the prompt that it does not hold already, by its
// cache events or because it was sent the same a moment ago. A request may be held for a busy worker
// that has its prefix while that is sooner than computing it elsewhere.
//
// A heartbeat is trusted in full while it is fresh; then the room it promises shrinks with its age,
// down to none. Nothing here reads a clock, does I/O, or depends on the order of a map: the same
// calls give the same assignments. Every charge has an undo (Forget), and charges end by themselves
// when a heartbeat covers their dispatch.
//
// A Batcher is for one goroutine at a time. The package must not import gRPC, the wire types, or
// anything else of the control plane but scheduler/prefix: the simulator runs this very code under its own time.
package batch
