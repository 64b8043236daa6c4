// Package batch is the continuous batcher of the control plane: given the queue, what the workers
// said of themselves, and the time, it decides which requests go to which workers now.
//
// It binds late. A request leaves the queue only when a worker can start it: when the worker has
// room for its sequences, its blocks and its prompt tokens, counting what was sent to it since its
// newest heartbeat. Until then the request stays where every worker may still take it, so that
// nobody waits behind a stranger while another worker idles.
//
// Requests are taken in this order: priority class; then, among tenants, the one that was served
// the fewest tokens by its weight; then, within a tenant, the earliest deadline, then arrival. The
// oldest request of each class rises by one class every AgeStepMS, ahead of all others there, so
// that neither a busy class nor a busy tenant starves anyone. Requests that have run and lost their
// worker go first in their class. A request that fits nowhere may be passed by smaller ones for PassMS;
// after that the worker nearest to fitting it is kept free of others until it fits.
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
