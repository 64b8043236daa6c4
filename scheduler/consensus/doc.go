// Package consensus keeps a state machine the same on all control-plane nodes, with hashicorp/raft.
// It knows nothing of requests or workers: bytes go in, the same bytes come out in the same order on
// every node.
//
// What it adds to the library is the way we run it:
//
//   - Heartbeats go through raft's main loop. The library's fast path for them runs beside the main
//     loop and races it on term and state (hashicorp/raft #695), so the transport is wrapped to
//     decline it. Heartbeats then wait behind an fsync, and timeouts of clusters allow for that.
//   - Proposals that are not committed yet are counted, and Propose blocks above MaxUncommitted. A
//     leader that is cut off cannot grow an orphan tail beyond what followers keep, which is what
//     sends a node the same snapshot for ever (#697). Snapshots leave more log behind than that.
//   - The log is raft-wal v0.4.1 exactly: v0.4.0 loses a segment's index when a tail is cut, and
//     v0.4.2 does not build with raft v1.8.0. OpenFiles is the one place that names it and the
//     other kinds, raft-boltdb and memory.
//   - A write to the log that fails for want of room makes raft step down; after any other error
//     nobody knows what the disk holds, and the node stops. One that hangs costs the leadership: raft's
//     loop waits for it while heartbeats go on, so a timer does what raft cannot, and every wait for
//     raft ends with its context.
//   - Nothing is applied that is not as it was written: all of a data folder is verified when the node
//     starts and when it is read, the log must reach as far as the node has acknowledged, and a damaged
//     node starts over from the others. DESIGN.md tells how.
//   - A node that knows no members, or that its cluster has not taken in since its folder was new, gives
//     no vote: its disk may have been replaced.
//   - When the leader's connections break and its port refuses new ones, its process is gone, and the
//     first voter by id stands for election at once instead of after the heartbeat timeout.
//   - Raft looks whether the leader is silent at intervals of one to two heartbeat timeouts, and so may
//     take three to notice. It is told to look when the silence has lasted for one.
//   - One transfer of leadership at a time, and a leader that a transfer has left refusing every entry
//     stops (#696).
//   - A data folder is locked before anything in it is opened: two processes on one log destroy it.
//   - A node whose only voter is itself elects itself within a fraction of a second; clusters use
//     seconds, because a heartbeat may wait for a slow disk.
//   - Entries stay under MaxEntryBytes, and few are sent or written at once: they share connections, and
//     raft's loop, with heartbeats.
//
// The package must not import the rest of the control plane, nor gRPC.
package consensus
