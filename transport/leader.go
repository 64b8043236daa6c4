package transport

import "google.golang.org/grpc/metadata"

// LeaderTrailer carries the leader's address in answers of other nodes.
const LeaderTrailer = "quire-leader"

// MaxAnswer bounds an answer within the cluster, in bytes: the output of a request, or a full batch of
// long prompts.
const MaxAnswer = 64 << 20

// Leader is the leader's address in a node's refusal; empty if it names none.
func Leader(trailer metadata.MD) string {
	if v := trailer.Get(LeaderTrailer); len(v) > 0 {
		return v[0]
	}
	return ""
}
