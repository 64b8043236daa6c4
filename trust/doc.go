// Package trust says who is who in a cluster: roles, names, the certificates that prove them, and the
// authority that signs these. Who may do what is in transport.
//
// Every process of a cluster shows a certificate of the cluster's CA with one URI among its alternative
// names, quire://cluster/ROLE/NAME. Whoever is dialled by a host's name must also show that host; whoever
// is dialled by the name of its certificate need not.
//
// Invariants, each with a test:
//
//   - Both sides of a connection prove who they are, with TLS 1.3, before a byte of what is above is read.
//   - A certificate without a role, with two, or of another CA is nobody's.
//   - Files that change are taken up by the next connection; files that are broken never are.
//
// The package must not import anything of ours, nor gRPC: the log's port uses it too.
package trust
