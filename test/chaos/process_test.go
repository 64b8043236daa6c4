//go:build linux

package chaos

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// build compiles the binary under test, unless one is given.
func build(t *testing.T) string {
	t.Helper()
	if *binaryFlag != "" {
		return *binaryFlag
	}
	binary := filepath.Join(t.TempDir(), "quire")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/quire-serve/quire/cmd/quire").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// machine is where processes run: one in the network, or this one's loopback if port is nil.
type machine struct {
	port *port
	host string
}

// listen is an address of the machine: the given port of its own, or a free one on the loopback.
func (m *machine) listen(t *testing.T, number int) string {
	t.Helper()
	if m.port != nil {
		return net.JoinHostPort(m.host, fmt.Sprint(number))
	}
	l, err := net.Listen("tcp", m.host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// process is a quire that is started, ended and started again.
type process struct {
	name    string
	machine *machine
	command []string
	log     string

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{}
	// wanted is false while a fault keeps it down: an end is then no surprise.
	wanted bool
	starts int
}

// start runs it. Its log goes on from the last run's.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "---- start %d at %s\n", p.starts, time.Now().Format(time.StampMilli))
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "QUIRE_") || strings.HasPrefix(kv, "QUIRE_MODELS=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.machine.port != nil {
		err = elsewhere(p.machine.port.namespace, cmd.Start)
	} else {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.cmd, p.ended, p.wanted = cmd, make(chan struct{}), true
	p.starts++
	go func(cmd *exec.Cmd, ended chan struct{}) {
		err := cmd.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.wanted {
			surprises.add(fmt.Sprintf("%s ended by itself at %s: %v", p.name, time.Now().Format(time.StampMilli), err))
		}
		close(ended)
	}(cmd, p.ended)
	return nil
}

// signal sends a signal to the process; after one that ends it, its end is expected.
func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s == syscall.SIGKILL || s == syscall.SIGTERM || s == syscall.SIGQUIT {
		p.wanted = false
	}
	_ = p.cmd.Process.Signal(s) // It may have ended already.
}

// wait waits for the process to end and says whether it did in time.
func (p *process) wait(limit time.Duration) bool {
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	select {
	case <-ended:
		return true
	case <-time.After(limit):
		return false
	}
}

// kill ends the process as a crash does.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	p.wait(time.Minute)
}

// surprises are ends that no fault explains.
var surprises list

type list struct {
	mu    sync.Mutex
	items []string
}

func (l *list) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = append(l.items, s)
}

func (l *list) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.items...)
}
