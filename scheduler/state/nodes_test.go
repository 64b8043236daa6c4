package state

import (
	"bytes"
	"slices"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func node(id, address string, removed bool) *pb.Command {
	return &pb.Command{Command: &pb.Command_Node{Node: &pb.NodeCommand{
		Node: &pb.Node{Id: id, ControlAddress: address}, Removed: removed,
	}}}
}

func TestNodesComeChangeAndGo(t *testing.T) {
	l := &log{t: t, store: New()}
	list := func() (out []string) {
		for n := range l.store.View().Nodes() {
			out = append(out, n.GetId()+"="+n.GetControlAddress())
		}
		return out
	}
	for _, step := range []struct {
		command *pb.Command
		changed bool
		want    []string
	}{
		{node("b", "b:1", false), true, []string{"b=b:1"}},
		{node("a", "a:1", false), true, []string{"a=a:1", "b=b:1"}},
		{node("a", "a:1", false), false, []string{"a=a:1", "b=b:1"}},
		{node("a", "a:2", false), true, []string{"a=a:2", "b=b:1"}},
		{node("c", "", true), false, []string{"a=a:2", "b=b:1"}},
		{node("b", "", true), true, []string{"a=a:2"}},
	} {
		if r := l.apply(1, step.command)[0]; r.Changed != step.changed {
			t.Errorf("%v: changed %v", step.command, r.Changed)
		}
		if got := list(); !slices.Equal(got, step.want) {
			t.Errorf("after %v: nodes %v, want %v", step.command, got, step.want)
		}
	}
	restored := New()
	if err := restored.Restore(bytes.NewReader(snapshot(t, l.store))); err != nil {
		t.Fatal(err)
	}
	if got := restored.View().Node("a"); got.GetControlAddress() != "a:2" || restored.View().Node("b") != nil {
		t.Errorf("after restoring: %v", got)
	}
	if _, err := l.store.Apply(l.index+1, 3, encode(t, 1, &pb.Command{Command: &pb.Command_Node{Node: &pb.NodeCommand{}}})); err == nil {
		t.Error("a command about no node was applied")
	}
}
