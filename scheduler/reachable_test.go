package scheduler

import (
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestWorkersThatNobodyReachesAreRefused: an address that means another machine to the gateways than to the
// worker is refused with the reason, before the log hears of it.
func TestWorkersThatNobodyReachesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			self, from, address string
			want                string
		}{
			{"127.0.0.1:8004", "127.0.0.1:5", "127.0.0.1:8002", ""},
			{"127.0.0.1:8004", "127.0.0.1:5", "localhost:8002", ""},
			{"10.0.0.1:8004", "10.0.0.2:5", "10.0.0.2:8002", ""},
			{"10.0.0.1:8004", "127.0.0.1:5", "10.0.0.1:8002", ""},
			{"10.0.0.1:8004", "10.0.0.2:5", "worker-2:8002", ""},
			{"10.0.0.1:8004", "10.0.0.2:5", "127.0.0.1:8002", "connects from 10.0.0.2"},
			{"127.0.0.1:8004", "10.0.0.2:5", "[::1]:8002", "connects from 10.0.0.2"},
			{"10.0.0.1:8004", "127.0.0.1:5", "127.0.0.1:8002", "from this machine alone"},
			{"127.0.0.1:8004", "127.0.0.1:5", "0.0.0.0:8002", "an address to listen on"},
			{"127.0.0.1:8004", "127.0.0.1:5", "[::]:8002", "an address to listen on"},
			{"127.0.0.1:8004", "127.0.0.1:5", "worker-2", "the port is missing"},
			{"127.0.0.1:8004", "127.0.0.1:5", "http://worker-2:8002", "is a URL"},
		} {
			s := start(t, Settings{ControlAdvertise: c.self})
			until(t, "it leads", s.Ready)
			w := newWorker(t, "w")
			w.info.Address = c.address
			from, err := net.ResolveTCPAddr("tcp", c.from)
			if err != nil {
				t.Fatal(err)
			}
			up := newStream()
			up.ctx = peer.NewContext(up.ctx, &peer.Peer{Addr: from})
			up.up <- &pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: &pb.Hello{Worker: w.info}}}
			ended := make(chan error, 1)
			go func() { ended <- s.Work(up) }()
			select {
			case err := <-ended:
				if c.want == "" || status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "hello.worker.address: ") || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%+v: %v", c, err)
				}
				if s.store.View().Worker("w") != nil {
					t.Errorf("%+v: the log has the worker", c)
				}
			case m := <-up.down:
				if c.want != "" || m.GetWelcome() == nil {
					t.Errorf("%+v: %v", c, m)
				}
				up.cancel()
				<-ended
			}
			up.cancel()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
