//go:build linux

package chaos

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// network joins machines, each a network namespace with one TUN device, by a switch in this process.
// The kernel's own TCP runs at both ends, so that what is lost here is retransmitted there, as on a
// real network. Faults are a matter of what the switch does with a packet.
type network struct {
	mu    sync.Mutex
	ports []*port
	done  sync.WaitGroup
}

// port is where a machine is plugged in.
type port struct {
	address netip.Addr
	// namespace is an open descriptor; -1 is that of this process.
	namespace int
	device    *os.File
	// lines lead to the other ports, by their index.
	lines [maxMachines]line
}

const (
	maxMachines = 16
	// linePackets bounds what a slow line holds; more is dropped, as by a router.
	linePackets = 512
	mtu         = 9000
)

// line is one direction between two machines. Without a quality it is perfect.
type line struct {
	quality atomic.Pointer[quality]
	queue   chan packet
}

type quality struct {
	// cut lets nothing pass.
	cut bool
	// loss is the share of packets that vanish.
	loss float64
	// delay plus up to jitter passes before a packet arrives.
	delay, jitter time.Duration
	// rate is in bytes a second; 0 is unlimited.
	rate int
}

type packet struct {
	due  time.Time
	data []byte
	rate int
}

// plug makes a machine with an address of its own. The first one is this process's namespace.
func (n *network) plug() (*port, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := len(n.ports)
	if i == maxMachines {
		return nil, fmt.Errorf("the network has %d ports", maxMachines)
	}
	p := &port{address: netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)}), namespace: -1}
	var err error
	if i == 0 {
		p.device, err = openDevice(p.address)
	} else {
		err = elsewhere(-1, func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("network namespace: %w", err)
			}
			if p.namespace, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
			p.device, err = openDevice(p.address)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	for j := range p.lines {
		l := &p.lines[j]
		l.queue = make(chan packet, linePackets)
	}
	n.ports = append(n.ports, p)
	n.done.Go(func() { n.forward(p) })
	for j := range p.lines {
		n.done.Go(func() { n.trickle(p, j) })
	}
	return p, nil
}

// close ends the network; what is plugged in hears nothing more.
func (n *network) close() {
	n.mu.Lock()
	ports := n.ports
	n.mu.Unlock()
	for _, p := range ports {
		p.device.Close()
		if p.namespace >= 0 {
			unix.Close(p.namespace)
		}
	}
	n.done.Wait()
}

// at is the port with that index, nil if nothing is plugged in there.
func (n *network) at(i int) *port {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i < 0 || i >= len(n.ports) {
		return nil
	}
	return n.ports[i]
}

// forward takes what a machine sends, until its device is closed.
func (n *network) forward(p *port) {
	defer func() {
		for j := range p.lines {
			close(p.lines[j].queue)
		}
	}()
	buf := make([]byte, mtu)
	for {
		size, err := p.device.Read(buf)
		if err != nil {
			return
		}
		if size < 20 || buf[0]>>4 != 4 {
			continue // not IPv4
		}
		j := int(buf[19]) - 1
		to := n.at(j)
		if to == nil {
			continue
		}
		l := &p.lines[j]
		q := l.quality.Load()
		switch {
		case q == nil:
			_, _ = to.device.Write(buf[:size]) // A full or closed device loses packets, as wires do.
		case q.cut, q.loss > 0 && rand.Float64() < q.loss:
		default:
			due := time.Now().Add(q.delay)
			if q.jitter > 0 {
				due = due.Add(rand.N(q.jitter))
			}
			select {
			case l.queue <- packet{due: due, data: append([]byte(nil), buf[:size]...), rate: q.rate}:
			default:
			}
		}
	}
}

// trickle delivers what a line delays.
func (n *network) trickle(p *port, j int) {
	for k := range p.lines[j].queue {
		time.Sleep(time.Until(k.due))
		if k.rate > 0 {
			time.Sleep(time.Duration(len(k.data)) * time.Second / time.Duration(k.rate))
		}
		if to := n.at(j); to != nil {
			_, _ = to.device.Write(k.data)
		}
	}
}

// shape gives all lines from and to a machine a quality; nil makes them perfect.
func (n *network) shape(p *port, q *quality) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, other := range n.ports {
		if other == p {
			for j := range p.lines {
				p.lines[j].quality.Store(q)
			}
			for _, o := range n.ports {
				o.lines[i].quality.Store(q)
			}
		}
	}
}

// between gives the lines between two machines, or one of the two directions, a quality.
func (n *network) between(from, to *port, both bool, q *quality) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, p := range n.ports {
		switch {
		case p == to:
			from.lines[i].quality.Store(q)
		case p == from && both:
			to.lines[i].quality.Store(q)
		}
	}
}

// openDevice makes a TUN device in the thread's namespace and brings it up, with the loopback.
func openDevice(address netip.Addr) (*os.File, error) {
	const name = "quire0"
	if err := set("lo", unix.SIOCSIFFLAGS, flags(unix.IFF_UP)); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	device, err := configure(fd, name, address)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network device %s with %v: %w", name, address, err), unix.Close(fd))
	}
	return device, nil
}

func configure(fd int, name string, address netip.Addr) (*os.File, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		call uint
		to   func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(address.AsSlice()) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 255, 0}) }},
		{unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(mtu); return nil }},
		{unix.SIOCSIFTXQLEN, func(r *unix.Ifreq) error { r.SetUint32(1000); return nil }},
		{unix.SIOCSIFFLAGS, flags(unix.IFF_UP)},
	} {
		if err := set(name, step.call, step.to); err != nil {
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// set changes a setting of a device in the thread's namespace.
func set(device string, call uint, to func(*unix.Ifreq) error) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(device)
	if err == nil {
		err = to(r)
	}
	if err == nil {
		err = unix.IoctlIfreq(s, call, r)
	}
	if err != nil {
		return fmt.Errorf("%s, call %#x: %w", device, call, err)
	}
	return nil
}

func flags(f uint16) func(*unix.Ifreq) error {
	return func(r *unix.Ifreq) error { r.SetUint16(f); return nil }
}

// link takes a machine's device down or up, as pulling the cable does: its own side notices.
func (p *port) link(up bool) error {
	state := uint16(0)
	if up {
		state = unix.IFF_UP | unix.IFF_RUNNING
	}
	return elsewhere(p.namespace, func() error { return set("quire0", unix.SIOCSIFFLAGS, flags(state)) })
}

// elsewhere calls f on a thread that is in a namespace, or, for -1, may leave its own. A thread that
// cannot come back ends.
func elsewhere(namespace int, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- err
			return
		}
		defer unix.Close(home)
		if namespace >= 0 {
			err = unix.Setns(namespace, unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		back := unix.Setns(home, unix.CLONE_NEWNET)
		result <- errors.Join(err, back)
		if back == nil {
			runtime.UnlockOSThread()
		}
	}()
	return <-result
}
