// Package chaos proves Quire's promise with real processes: kill any one machine in the middle of a
// generation, and the client's stream goes on with exactly the tokens it would have had.
//
// The test starts control-plane nodes and workers of the built binary, each on a machine of its own (a
// network namespace), keeps many streams running through clients that follow docs/resuming.md, breaks
// something every few seconds, and compares every answer with the one that was computed before anything
// broke. docs/chaos.md says how to run it and how to read its table.
//
// It sees Quire as clients and operators do: the binary, HTTP and gRPC. It imports the wire API and
// nothing else of ours.
package chaos
