package scheduler

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// registration is what the log is to know of a worker. One that comes waits for done; refused is set
// by then if the log did not take it.
type registration struct {
	command *pb.WorkerCommand
	done    chan struct{}
	refused *state.Refusal
}

// registrationsWaiting bounds the workers that wait to be let in.
const registrationsWaiting = 16384

// register has the log let a worker in, which it does only if the worker serves what others serve
// under its model's name. One that is known as it is need not wait.
func (l *leader) register(ctx context.Context, hello *pb.Hello) error {
	info := hello.GetWorker()
	claim := state.Identity(info)
	view := l.s.store.View()
	known := view.Worker(info.GetId())
	again := known != nil && known.GetModel() == info.GetModel()
	m := view.Model(info.GetModel())
	if m != nil {
		// The log has the word; but what it would refuse need not fill it.
		if refused := m.Check(claim, hello.GetRebind(), again); refused != nil {
			return mismatch(refused)
		}
	}
	if m == nil || m.Identity == nil {
		if refused := l.otherCopies(claim); refused != nil {
			return mismatch(refused)
		}
	}
	r, err := l.enter(hello, m != nil && proto.Equal(known, info) && proto.Equal(m.Identity, claim))
	if r == nil || err != nil {
		return err
	}
	select {
	case <-r.done:
	case <-l.done:
		return rpc.NotLeading("the worker was being let in")
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	if r.refused != nil {
		return mismatch(r.refused)
	}
	return nil
}

func mismatch(why *state.Refusal) error {
	return status.Error(codes.FailedPrecondition, "hello.worker: "+why.Reason)
}

// enter begins the registration of a worker. There is none if the log has it as it is, unless the
// leader has given it up: then the log is about to hear so.
func (l *leader) enter(hello *pb.Hello, logged bool) (*registration, error) {
	info := hello.GetWorker()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.taken(info, l.s.settings.now()); err != nil {
		return nil, err
	}
	if logged && proto.Equal(l.workers[info.GetId()], info) {
		return nil, nil
	}
	if len(l.workerNews) >= registrationsWaiting {
		return nil, rpc.Exhausted("too many workers wait to be let in", time.Second)
	}
	return l.announce(info, hello.GetRebind()), nil
}

// announce puts a worker on its way to the log.
func (l *leader) announce(info *pb.WorkerInfo, rebind bool) *registration {
	r := &registration{command: &pb.WorkerCommand{Worker: info, Model: state.Identity(info), Rebind: rebind}, done: make(chan struct{})}
	l.workerNews = append(l.workerNews, r)
	l.kick()
	return r
}

func (l *leader) composeRegistrations(e *entry) {
	l.workerNews = take(l.workerNews, func(r *registration) bool {
		size := proto.Size(r.command) + commandBytes
		if e.bytes+size > settleBytes {
			return false
		}
		e.add(&pb.Command{Command: &pb.Command_Worker{Worker: r.command}}, size, func(result state.Result) { l.registered(r, result) })
		return true
	})
}

// registered is called once the log has heard of a worker. One that was let in and does not begin its
// session after all is given up like one that has lost it.
func (l *leader) registered(r *registration, result state.Result) {
	id := r.command.GetWorker().GetId()
	if r.command.GetLeft() {
		if back := l.workers[id]; back != nil {
			l.announce(back, false) // It came back while the log was told that it had left.
		}
		return
	}
	r.refused = result.Refused
	switch s := l.sessions[id]; {
	case r.refused != nil && s != nil && proto.Equal(s.info, r.command.GetWorker()):
		s.close(mismatch(r.refused))
	case r.refused == nil && s == nil:
		l.workers[id] = r.command.GetWorker()
		l.countModels()
		l.absent[id] = l.s.settings.now().Add(l.s.settings.SessionGrace)
	}
	close(r.done)
}
