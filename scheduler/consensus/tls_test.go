package consensus

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quire-serve/quire/trust"
)

// TestLogPortIsForNodes has processes of all roles connect to a node's log port and be connected to.
func TestLogPortIsForNodes(t *testing.T) {
	ca, err := trust.NewAuthority(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}
	listen := func(role trust.Role, name, host string) raft.StreamLayer {
		files, err := ca.Issue(trust.Identity{Role: role, Name: name}, []string{host}, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		certificates, err := trust.Load(files, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		layer := OverTLS(listenLoopback(t), "", certificates)
		t.Cleanup(func() { _ = layer.Close() })
		return layer
	}
	n1, n2 := listen(trust.Node, "n1", "127.0.0.1"), listen(trust.Node, "n2", "127.0.0.1")
	if err := talk(n1, n2); err != nil {
		t.Errorf("two nodes: %v", err)
	}
	if err := talk(n1, listen(trust.Node, "n3", "127.0.0.9")); err == nil {
		t.Error("a node spoke to one at another host than its certificate says")
	}
	for _, role := range []trust.Role{trust.Gateway, trust.Worker, trust.Operator} {
		other := listen(role, string(role), "127.0.0.1")
		if err := talk(other, n1); err == nil {
			t.Errorf("a node's log listened to a %s", role)
		}
		if err := talk(n1, other); err == nil {
			t.Errorf("a node sent its log to a %s", role)
		}
	}
}

// listenLoopback opens a port.
func listenLoopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// talk sends a byte from one layer to the other and says whether it came through both ways.
func talk(from, to raft.StreamLayer) error {
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		conn, err := to.Accept()
		if err != nil {
			return
		}
		_, _ = io.CopyN(conn, conn, 1) // The dialler sees what fails.
		_ = conn.Close()
	}()
	defer func() { <-echoed }()
	conn, err := from.Dial(raft.ServerAddress(to.Addr().String()), time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte{7}); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}
