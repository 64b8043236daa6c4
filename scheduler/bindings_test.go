package scheduler

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestAWaitingWorkerCapturesNoName: a worker with other weights that waits beside the right one is not let in
// when that one is gone, and the right one comes back; an operator can change what the name stands for.
func TestAWaitingWorkerCapturesNoName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		right, wrong := newWorker(t, "right"), newWorker(t, "wrong")
		right.info.ModelDigest, wrong.info.ModelDigest = "one", "two"
		in := func(w *fakeWorker) func() bool {
			return func() bool { return s.leader.Load() != nil && s.Stats().Workers == 1 && w.end() == nil }
		}
		refused := func(w *fakeWorker, parts ...string) {
			t.Helper()
			w.join(s)
			until(t, "it is refused", func() bool { return w.end() != nil })
			for _, part := range parts {
				if !strings.Contains(w.end().Error(), part) {
					t.Errorf("refused because %v, without %q", w.end(), part)
				}
			}
		}
		right.join(s)
		until(t, "the right one is in session", in(right))
		refused(wrong, `"two"`, `"one"`)
		right.goodbye()
		until(t, "the right one is gone", func() bool { return s.store.View().Worker("right") == nil })
		refused(wrong, `"two"`, `"one"`, "quire pool bind")
		right.join(s)
		until(t, "the right one is back", in(right))
		bind := &pb.BindModelRequest{Model: &pb.ModelIdentity{Name: "m", Digest: "two"}}
		if _, err := s.BindModel(context.Background(), bind); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("bound beside a worker: %v", err)
		}
		right.goodbye()
		until(t, "the right one is gone", func() bool { return s.store.View().Worker("right") == nil })
		if _, err := s.BindModel(context.Background(), bind); err != nil {
			t.Fatal(err)
		}
		list, err := s.ListBindings(context.Background(), &pb.ListBindingsRequest{})
		if err != nil || len(list.GetBindings()) != 1 || list.GetBindings()[0].GetModel().GetDigest() != "two" {
			t.Errorf("listed %v, %v", list, err)
		}
		refused(right, `"one"`, `"two"`)
		wrong.join(s)
		until(t, "the other one is in session", in(wrong))
		wrong.goodbye()
		until(t, "it is gone", func() bool { return s.store.View().Worker("wrong") == nil })
		if _, err := s.ReleaseModel(context.Background(), &pb.ReleaseModelRequest{Name: "m"}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ReleaseModel(context.Background(), &pb.ReleaseModelRequest{Name: "m"}); status.Code(err) != codes.NotFound {
			t.Errorf("released twice: %v", err)
		}
	})
}

// TestReadyIsWhatGatewaysUse: gateways' copies of a model count. A worker that no gateway can use, or that
// some cannot, says so, and the first worker of a name has what the gateways have.
func TestReadyIsWhatGatewaysUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		watch := func(gateway string, models ...*pb.GatewayModel) (stop func()) {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = s.Watch(&pb.WatchRequest{GatewayId: gateway, Models: models}, &watchStream{ctx: ctx})
			}()
			until(t, "the gateway watches", func() bool {
				l := s.leader.Load()
				l.mu.Lock()
				defer l.mu.Unlock()
				return l.owners[gateway].watches()
			})
			return func() { cancel(); <-done }
		}
		unusable := func() string {
			t.Helper()
			list, err := s.ListWorkers(context.Background(), &pb.ListWorkersRequest{})
			if err != nil || len(list.GetWorkers()) != 1 {
				t.Fatalf("listed %v, %v", list, err)
			}
			return list.GetWorkers()[0].GetUnusable()
		}
		stop := watch("g1", &pb.GatewayModel{Name: "m", Digest: "one"})
		w := newWorker(t, "w")
		w.info.ModelDigest = "two"
		w.join(s)
		until(t, "it is refused", func() bool { return w.end() != nil })
		if err := w.end().Error(); !strings.Contains(err, "g1") || !strings.Contains(err, `"two"`) {
			t.Errorf("refused because %v", err)
		}
		w.info.ModelDigest = "one"
		w.join(s)
		defer w.leave()
		until(t, "it is in session", func() bool { return s.Stats().Workers == 1 })
		if why := unusable(); why != "" {
			t.Errorf("the gateway uses it, and it is said: %q", why)
		}
		other := watch("g2", &pb.GatewayModel{Name: "m", Digest: "three"})
		if why := unusable(); !strings.Contains(why, "another copy") || !strings.Contains(why, "g2") {
			t.Errorf("beside a gateway with another copy: %q", why)
		}
		other()
		stop()
		if why := unusable(); why != "no gateway is there" {
			t.Errorf("without gateways: %q", why)
		}
		defer watch("g3", &pb.GatewayModel{Name: "n"})()
		if why := unusable(); !strings.Contains(why, `no gateway knows model "m"`) {
			t.Errorf("beside a gateway without the model: %q", why)
		}
	})
}
