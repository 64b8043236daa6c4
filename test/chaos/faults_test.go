//go:build linux

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// fault is one kind of trouble. strike makes it at a target of its choice and says which; undo ends it.
type fault struct {
	kind string
	// hold is how long it stays: at least, at most.
	hold [2]time.Duration
	// admission is set if new requests may have to wait, leader if the leader is away: how long is measured.
	admission, leader bool
	// prepare, if set, comes before the fault, and is not part of it.
	prepare func(f *trouble)
	strike  func(f *trouble) (target string, undo func())
}

// strike is a fault that was made.
type strike struct {
	kind, target string
	at           time.Time
	// elected is from the fault to a new leader, admitted to the first token of a request that was sent
	// after it; 0 if it was not waited for or did not come.
	elected, admitted time.Duration
}

// trouble makes faults, one after the other, in an order that the seed decides.
type trouble struct {
	c      *cluster
	load   *load
	random *rand.Rand

	mu      sync.Mutex
	strikes []*strike
	probes  sync.WaitGroup
	errs    []error
}

const second = time.Second

// kinds are the faults that can be made here.
func kinds(c *cluster) (all []fault) {
	all = []fault{
		{kind: "worker killed", hold: [2]time.Duration{second / 4, 2 * second}, strike: func(f *trouble) (string, func()) {
			return f.kill(f.worker())
		}},
		{kind: "leader killed", hold: [2]time.Duration{second, 3 * second}, admission: true, leader: true, strike: func(f *trouble) (string, func()) {
			return f.kill(f.leader().process)
		}},
		{kind: "follower killed", hold: [2]time.Duration{second / 2, 3 * second}, strike: func(f *trouble) (string, func()) {
			return f.kill(f.follower().process)
		}},
		{kind: "worker and gateway killed", hold: [2]time.Duration{second, 2 * second}, admission: true, strike: func(f *trouble) (string, func()) {
			return f.kill(f.worker(), f.node().process)
		}},
		{kind: "majority killed", hold: [2]time.Duration{second, 3 * second}, admission: true, strike: func(f *trouble) (string, func()) {
			i := f.random.IntN(len(f.c.nodes))
			return f.kill(f.c.nodes[i].process, f.c.nodes[(i+1)%len(f.c.nodes)].process)
		}},
		{kind: "worker frozen", hold: [2]time.Duration{second, 6 * second}, strike: func(f *trouble) (string, func()) {
			return f.freeze(f.worker())
		}},
		{kind: "leader frozen", hold: [2]time.Duration{second, 6 * second}, admission: true, leader: true, strike: func(f *trouble) (string, func()) {
			return f.freeze(f.leader().process)
		}},
		{kind: "worker drained", strike: func(f *trouble) (string, func()) { return f.drain(f.worker()) }},
		{kind: "node restarted", admission: true, strike: func(f *trouble) (string, func()) {
			return f.drain(f.node().process)
		}},
		{kind: "leadership handed over", hold: [2]time.Duration{second, second}, strike: func(f *trouble) (string, func()) {
			return f.handOver(""), func() {}
		}},
		{kind: "log damaged", admission: true, strike: func(f *trouble) (string, func()) { return f.spoilLog(f.node(), f.flip) }},
		{kind: "newest segment lost", admission: true, strike: func(f *trouble) (string, func()) { return f.spoilLog(f.node(), f.lose) }},
		{kind: "two nodes under one id", hold: [2]time.Duration{second, 3 * second}, strike: func(f *trouble) (string, func()) { return f.doubleNode(f.node()) }},
		{kind: "two workers under one id", hold: [2]time.Duration{2 * second, 5 * second}, strike: func(f *trouble) (string, func()) { return f.doubleWorker(f.worker()) }},
	}
	if c.hangs >= 0 {
		// Longer and shorter than the 3 s after which a node takes its disk to hang.
		hold := [2]time.Duration{2 * second, 9 * second}
		hang := func(f *trouble) (string, func()) { return f.hang(f.c.nodes[f.c.hangs]) }
		all = append(all,
			fault{kind: "leader's disk hangs", hold: hold, admission: true, leader: true, prepare: func(f *trouble) { f.handOver(f.c.nodes[f.c.hangs].id) }, strike: hang},
			fault{kind: "follower's disk hangs", hold: hold, prepare: func(f *trouble) {
				if f.leader() == f.c.nodes[f.c.hangs] {
					f.handOver("")
				}
			}, strike: hang},
		)
	}
	if c.network != nil {
		hold := [2]time.Duration{second, 6 * second}
		all = append(all,
			fault{kind: "worker cut off", hold: hold, strike: func(f *trouble) (string, func()) { return f.cutOff(f.worker()) }},
			fault{kind: "leader cut off", hold: hold, admission: true, leader: true, strike: func(f *trouble) (string, func()) { return f.cutOff(f.leader().process) }},
			fault{kind: "follower cut off", hold: hold, strike: func(f *trouble) (string, func()) { return f.cutOff(f.follower().process) }},
			fault{kind: "one-way cut worker to leader", hold: hold, strike: func(f *trouble) (string, func()) {
				w, l := f.worker(), f.leader()
				f.c.network.between(w.machine.port, l.machine.port, false, &quality{cut: true})
				return w.name + " to " + l.id, func() { f.c.network.between(w.machine.port, l.machine.port, false, nil) }
			}},
			fault{kind: "cut between leader and follower", hold: hold, admission: true, strike: func(f *trouble) (string, func()) {
				l, o := f.leader(), f.follower()
				f.c.network.between(l.machine.port, o.machine.port, true, &quality{cut: true})
				return l.id + " and " + o.id, func() { f.c.network.between(l.machine.port, o.machine.port, true, nil) }
			}},
			fault{kind: "worker behind a bad line", hold: hold, strike: func(f *trouble) (string, func()) { return f.spoil(f.worker()) }},
			fault{kind: "node behind a bad line", hold: hold, strike: func(f *trouble) (string, func()) {
				return f.spoil(f.node().process)
			}},
		)
	}
	if c.small >= 0 {
		all = append(all, fault{kind: "disk full", hold: [2]time.Duration{2 * second, 4 * second}, admission: true, strike: func(f *trouble) (string, func()) {
			return f.fill(f.c.nodes[f.c.small])
		}})
	}
	return all
}

// run makes faults until the time is over: each kind once in a random order, then again. The next one
// waits for the control plane to have healed from the last, so that what is measured is one fault.
func (f *trouble) run(ctx context.Context, duration time.Duration, only string) error {
	end := time.Now().Add(duration)
	all := slices.DeleteFunc(kinds(f.c), func(k fault) bool { return !strings.Contains(k.kind, only) })
	if len(all) == 0 {
		return fmt.Errorf("no fault that can be made here is called %q", only)
	}
	for {
		f.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, kind := range all {
			if time.Now().After(end) || ctx.Err() != nil {
				f.probes.Wait()
				return errors.Join(f.errs...)
			}
			if err := f.one(ctx, kind); err != nil {
				return err
			}
		}
	}
}

func (f *trouble) one(ctx context.Context, kind fault) error {
	healed, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := f.c.settle(healed); err != nil {
		return fmt.Errorf("the cluster does not heal from %s: %w", f.last(), err)
	}
	rest(ctx, f.between(second/2, 3*second/2))
	if kind.prepare != nil {
		kind.prepare(f)
	}
	before := f.leader()
	s := &strike{kind: kind.kind, at: time.Now()}
	target, undo := kind.strike(f)
	s.target = target
	f.mu.Lock()
	f.strikes = append(f.strikes, s)
	f.mu.Unlock()
	if kind.admission {
		f.probes.Go(func() { f.watchAdmission(ctx, s, before, kind.leader) })
	}
	rest(ctx, f.between(kind.hold[0], kind.hold[1]))
	undo()
	return nil
}

// last names the newest fault.
func (f *trouble) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.strikes) == 0 {
		return "its start"
	}
	s := f.strikes[len(f.strikes)-1]
	return fmt.Sprintf("%q at %s", s.kind, s.target)
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (f *trouble) between(least, most time.Duration) time.Duration {
	if most <= least {
		return least
	}
	return least + time.Duration(f.random.Int64N(int64(most-least)))
}

func (f *trouble) worker() *process { return f.c.workers[f.random.IntN(len(f.c.workers))] }

func (f *trouble) node() *node { return f.c.nodes[f.random.IntN(len(f.c.nodes))] }

func (f *trouble) leader() *node {
	if n := f.c.leader(context.Background()); n != nil {
		return n
	}
	return f.c.nodes[0]
}

func (f *trouble) follower() *node {
	leader := f.leader()
	i := f.random.IntN(len(f.c.nodes) - 1)
	for _, n := range f.c.nodes {
		if n != leader {
			if i == 0 {
				return n
			}
			i--
		}
	}
	return leader
}

func names(list []*process) (s string) {
	for i, p := range list {
		if i > 0 {
			s += " and "
		}
		s += p.name
	}
	return s
}

func (f *trouble) kill(list ...*process) (string, func()) {
	for _, p := range list {
		p.signal(syscall.SIGKILL)
	}
	for _, p := range list {
		p.wait(10 * second)
	}
	return names(list), func() { f.restart(list...) }
}

func (f *trouble) restart(list ...*process) {
	for _, p := range list {
		if err := p.start(); err != nil {
			f.errs = append(f.errs, err)
		}
	}
}

func (f *trouble) freeze(p *process) (string, func()) {
	p.signal(syscall.SIGSTOP)
	return p.name, func() { p.signal(syscall.SIGCONT) }
}

// drain asks a process to end, as an operator does, and starts it again when it has.
func (f *trouble) drain(p *process) (string, func()) {
	p.signal(syscall.SIGTERM)
	return p.name, func() {
		if !p.wait(45 * second) {
			f.errs = append(f.errs, fmt.Errorf("%s did not end within 45 s of SIGTERM; its log has its goroutines", p.name))
			p.signal(syscall.SIGQUIT)
			p.wait(10 * second)
			p.kill()
		}
		f.restart(p)
	}
}

// cutOff partitions a machine: by silence, or by a link that is down, which its own side notices.
func (f *trouble) cutOff(p *process) (string, func()) {
	port := p.machine.port
	if f.random.IntN(2) == 0 {
		f.c.network.shape(port, &quality{cut: true})
		return p.name + " silently", func() { f.c.network.shape(port, nil) }
	}
	set := func(up bool) {
		if err := port.link(up); err != nil {
			f.errs = append(f.errs, fmt.Errorf("link of %s: %w", p.name, err))
		}
	}
	set(false)
	return p.name + " by link down", func() { set(true) }
}

func (f *trouble) spoil(p *process) (string, func()) {
	f.c.network.shape(p.machine.port, &quality{loss: 0.02, delay: 20 * time.Millisecond, jitter: 20 * time.Millisecond, rate: 1 << 20})
	return p.name, func() { f.c.network.shape(p.machine.port, nil) }
}

// fill leaves no room on a node's disk. Every other time the node must start on it, too.
func (f *trouble) fill(n *node) (string, func()) {
	path := filepath.Join(n.data, "filler")
	file, err := os.Create(path)
	if err != nil {
		f.errs = append(f.errs, err)
		return n.id, func() {}
	}
	defer file.Close()
	block := make([]byte, 1<<20)
	for len(block) > 0 {
		if _, err := file.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
	free := func() {
		if err := os.Remove(path); err != nil {
			f.errs = append(f.errs, err)
		}
	}
	if f.random.IntN(2) == 0 {
		return n.id, free
	}
	n.kill()
	f.restart(n.process)
	n.mu.Lock()
	n.wanted = false // It may refuse to start.
	n.mu.Unlock()
	return n.id + ", restarted on it", func() {
		free()
		if n.wait(0) {
			f.restart(n.process)
		}
		n.mu.Lock()
		n.wanted = true
		n.mu.Unlock()
	}
}

func (f *trouble) fail(err error) {
	if err != nil {
		f.errs = append(f.errs, err)
	}
}

// hang lets a node's disk take nothing. What it holds in memory it still reads.
func (f *trouble) hang(n *node) (string, func()) {
	thaw, err := freeze(n.data, 30*second)
	if err != nil {
		f.fail(err)
		return n.id, func() {}
	}
	return n.id, func() { f.fail(thaw()) }
}

// spoilLog stops a node as a crash does, does something to the newest segment of its log, and starts it
// again: it must repair itself from the others.
func (f *trouble) spoilLog(n *node, how func(segment string) (string, error)) (string, func()) {
	n.kill()
	segments, err := filepath.Glob(filepath.Join(n.data, "raft", "wal", "*.wal"))
	what := "no log"
	if err == nil && len(segments) > 0 {
		what, err = how(slices.Max(segments)) // Their names begin with the first entry.
	}
	f.fail(err)
	return n.id + ": " + what, func() { f.restart(n.process) }
}

// flip changes a bit of what was written.
func (f *trouble) flip(segment string) (string, error) {
	data, err := os.ReadFile(segment)
	if err != nil {
		return "", err
	}
	written := len(bytes.TrimRight(data, "\x00"))
	if written == 0 {
		return "an empty segment", nil
	}
	at := f.random.IntN(written)
	data[at] ^= 1 << f.random.IntN(8)
	return fmt.Sprintf("byte %d of %d", at, written), os.WriteFile(segment, data, 0o600)
}

func (f *trouble) lose(segment string) (string, error) {
	return filepath.Base(segment), os.Remove(segment)
}

// doubleNode starts a second node under a node's id and certificate, with a folder of its own. It must end.
func (f *trouble) doubleNode(n *node) (string, func()) {
	double := f.double(n.process)
	double.command = append(double.command, "--data", n.data+"-double")
	for i, flag := range []string{"--http", "--grpc", "--cluster", "--raft"} {
		double.command = append(double.command, flag, n.machine.listen(f.c.t, 9000+i))
	}
	return f.begin(double, func() {
		if !double.wait(20 * second) {
			f.fail(fmt.Errorf("a second %s is still there after 20 s", n.id))
		} else if code := double.cmd.ProcessState.ExitCode(); code != 1 {
			f.fail(fmt.Errorf("a second %s ended with code %d, want 1; see %s", n.id, code, double.log))
		}
		f.fail(os.RemoveAll(n.data + "-double"))
	})
}

// doubleWorker starts a second worker under a worker's id, at another address. It is not let in as long as
// the first is there.
func (f *trouble) doubleWorker(w *process) (string, func()) {
	double := f.double(w)
	double.command = append(double.command, "--listen", w.machine.listen(f.c.t, 9002))
	return f.begin(double, func() {})
}

// double is a process as another one, with a log of its own. Flags that come again count.
func (f *trouble) double(p *process) *process {
	return &process{name: "a second " + p.name, machine: p.machine, log: p.log + ".double", command: slices.Clone(p.command)}
}

// begin starts a double, and ends it when the fault does, after check.
func (f *trouble) begin(double *process, check func()) (string, func()) {
	if err := double.start(); err != nil {
		f.fail(err)
		return double.name, func() {}
	}
	double.mu.Lock()
	double.wanted = false // Its end is no surprise.
	double.mu.Unlock()
	return double.name, func() {
		check()
		double.kill()
	}
}

// handOver lets another node lead: to, or the one that is the least behind.
func (f *trouble) handOver(to string) string {
	leader := f.leader()
	if leader.id == to {
		return to
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*second)
	defer cancel()
	r, err := pb.NewClusterClient(leader.control).Transfer(ctx, &pb.TransferRequest{To: to})
	if err != nil {
		// It may have lost its leadership by itself in this moment.
		return leader.id + ": " + err.Error()
	}
	return leader.id + " to " + r.GetLeaderId()
}

// watchAdmission measures how long it takes until the others follow a new leader, if the fault takes
// the old one away, and until a request that was sent after the fault has its first token.
func (f *trouble) watchAdmission(ctx context.Context, s *strike, before *node, leader bool) {
	ctx, cancel := context.WithTimeout(ctx, 20*second)
	defer cancel()
	var others []*node
	for _, n := range f.c.nodes {
		if n != before {
			others = append(others, n)
		}
	}
	var both sync.WaitGroup
	both.Go(func() {
		if !leader {
			return
		}
		err := until(ctx, func() error {
			for _, n := range others {
				if d, err := n.describe(ctx); err == nil && d.GetLeaderId() != "" && d.GetLeaderId() != before.id {
					return nil
				}
			}
			return errors.New("no new leader")
		})
		if err == nil {
			s.elected = time.Since(s.at)
		}
	})
	both.Go(func() {
		zero := float32(0)
		var fronts []*front
		for _, n := range f.c.nodes {
			if !leader || n != before {
				fronts = append(fronts, n.front)
			}
		}
		probe := f.load.session(&ask{name: "probe", manner: repeats, choices: 1, generate: &pb.GenerateRequest{
			Model: f.c.model, Input: &pb.GenerateRequest_Prompt{Prompt: "Hello"}, Sampling: &pb.SamplingParams{Temperature: &zero, MaxTokens: 1, IgnoreEos: true},
		}})
		if probe.run(ctx, fronts, 0); probe.record.failure == "" {
			s.admitted = probe.record.first.Sub(s.at)
		}
	})
	both.Wait()
}
