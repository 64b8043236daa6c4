// Package membership is which nodes make up the control plane: how a node finds the others, proves who it is,
// becomes a member and stays one, and how the state of all of them is saved, replaced and compared.
//
// [Members] serves pb.Cluster. It changes the members through scheduler/consensus and the table of nodes
// through the log; of who leads it knows what [Leadership] says.
//
// Invariants:
//
//   - Two clusters are never formed of the same nodes: one node alone may form one, and it writes down who
//     belongs to it before it does.
//   - A node whose log is new, lost or damaged has no vote until it has caught up.
//   - A node speaks for itself: what is said of one by another does not count.
//   - A node whose state is not what the log makes of it neither leads, votes nor serves.
//   - One change of the members at a time; a snapshot is checked before it changes anything.
//
// The package must not import the scheduler, which is built on it, nor anything that knows of requests and
// workers.
package membership
