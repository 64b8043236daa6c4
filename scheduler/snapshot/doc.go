// Package snapshot is the file that an operator keeps of the control plane's state: a header that says of what
// and by whom, the state as scheduler/state writes it in pieces, and a checksum of it all. [Read] accepts a file
// only if it is whole and the state is the one that the header names.
//
// Snapshots that Raft takes by itself are not these: scheduler/consensus keeps them, in the log's folder.
//
// The package must not import who saves or restores such files.
package snapshot
