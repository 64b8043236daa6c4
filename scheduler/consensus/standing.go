package consensus

import "errors"

// errNewcomer is why a node keeps out of elections that may lack what a folder before its own had.
var errNewcomer = errors.New("this node's cluster has not taken it in yet")

// barred says why this node must neither lead nor vote, whatever raft thinks; nil if it may. Raft would let
// a node vote as soon as it finds itself among the voters in a log that it is just being sent, and one
// that finds itself alone there would lead.
func (n *Node) barred() error {
	if n.settings.Newcomer != nil && n.settings.Newcomer() {
		return errNewcomer
	}
	if err := n.Problem(); err != nil {
		return err
	}
	if n.watch.hangs() {
		return errHangs
	}
	return nil
}

// Problem is why this node takes no part in the cluster any more; nil while it does.
func (n *Node) Problem() error {
	if err := n.problem.Load(); err != nil {
		return *err
	}
	return nil
}

// Quarantine ends this node's part in the cluster: it does not lead, vote or apply any more, but can still
// be asked. One that has others starts over from them the next time.
func (n *Node) Quarantine(reason error) {
	if !n.problem.CompareAndSwap(nil, &reason) {
		return
	}
	n.settings.Logger.Error("this node takes no part in its cluster any more", "node", n.id, "error", reason)
	if err := n.markUnusable(reason); err != nil {
		n.settings.Logger.Error("that could not be written down, and is forgotten when the node starts again", "error", err)
	}
	n.standingChanged()
	n.shutdown()
}

// markUnusable notes that the folder must not be used again, if the node can be repaired from others.
func (n *Node) markUnusable(reason error) error {
	if !n.settings.Await || n.files.hard == nil {
		return nil
	}
	why := reason.Error()
	return n.files.hard.change(func(r *hardRecord) { r.Unusable = why[:min(len(why), maxReasonBytes)] })
}

// mayVote says whether this node answers requests for its vote.
func (n *Node) mayVote() bool { return len(n.Members()) > 0 && n.barred() == nil }

// announce passes raft's word of leadership on, as far as this node may lead.
func (n *Node) announce() {
	for {
		select {
		case <-n.stopping:
			return
		case leads := <-n.raft.LeaderCh():
			n.tell(leads && n.barred() == nil)
		case <-n.reconsider:
			n.tell(n.Leads())
		}
	}
}

// standingChanged has announce look again whether this node may lead.
func (n *Node) standingChanged() {
	select {
	case n.reconsider <- struct{}{}:
	default:
	}
}

// tell replaces what nobody has read yet.
func (n *Node) tell(leads bool) {
	select {
	case <-n.leadership:
	default:
	}
	n.leadership <- leads // One goroutine sends.
}
