package state

import (
	"iter"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// node records a control-plane node or forgets it. Who votes is not decided here: that is in raft's
// own configuration.
func (a *application) node(c *pb.NodeCommand) Result {
	known := first[*pb.Node](a.txn, nodesTable, c.GetNode().GetId())
	switch {
	case c.GetRemoved() && known == nil, !c.GetRemoved() && proto.Equal(known, c.GetNode()):
		return Result{}
	case c.GetRemoved():
		must(a.txn.Delete(nodesTable, known))
	default:
		must(a.txn.Insert(nodesTable, c.GetNode()))
	}
	return Result{Changed: true}
}

// Node returns the control-plane node of this id, or nil.
func (v *View) Node(id string) *pb.Node {
	return first[*pb.Node](v.db.Txn(false), nodesTable, id)
}

// Nodes lists the control-plane nodes by id.
func (v *View) Nodes() iter.Seq[*pb.Node] { return list[*pb.Node](v.db, nodesTable, "id") }
