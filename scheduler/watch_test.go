package scheduler

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/roster"
)

// TestWatchTellsWhatChanges counts what a gateway is told of a pool: all of it once, then the changes, whatever
// else it is told, and nothing that it knows when it comes back.
func TestWatchTellsWhatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		const size = 50
		workers := make([]*fakeWorker, size)
		for n := range workers {
			workers[n] = newWorker(t, fmt.Sprint("w", n))
			workers[n].hold = time.Millisecond
			workers[n].join(s)
			defer workers[n].leave()
		}
		until(t, "all are in session", func() bool { return s.Stats().Workers == size })
		var view roster.View
		var told, ended, messages, bytes int
		follow := func() (stop func()) {
			ctx, cancel := context.WithCancel(context.Background())
			var done sync.WaitGroup
			told, ended, messages, bytes = 0, 0, 0, 0
			known := view.Known()
			done.Go(func() {
				_ = s.Watch(&pb.WatchRequest{GatewayId: "g", Known: known}, &newsStream{ctx: ctx, send: func(m *pb.WatchResponse) error {
					told += len(m.GetWorkers().GetWorkers()) + len(m.GetWorkers().GetLeft())
					ended += len(m.GetEnded())
					messages++
					bytes += proto.Size(m)
					_, _, err := view.Apply(m.GetWorkers())
					return err
				}}) // It ends when it is stopped.
			})
			synctest.Wait()
			return func() {
				synctest.Wait()
				cancel()
				done.Wait()
			}
		}
		stop := follow()
		if told != size || len(view.Workers()) != size {
			t.Errorf("at first %d workers are told, %d are known; there are %d", told, len(view.Workers()), size)
		}
		told, bytes = 0, 0
		for n := range 200 {
			mustSubmit(t, s, request(fmt.Sprint("r", n)))
		}
		until(t, "all ends are told", func() bool { synctest.Wait(); return ended == 200 })
		if told != 0 || bytes > 200*100 {
			t.Errorf("200 ends told of %d workers and took %d bytes", told, bytes)
		}
		workers[7].goodbye()
		until(t, "one is gone", func() bool { synctest.Wait(); return len(view.Workers()) == size-1 })
		if told != 1 {
			t.Errorf("one worker left, %d are told", told)
		}
		stop()
		stop = follow()
		if messages == 0 || told != 0 || len(view.Workers()) != size-1 {
			t.Errorf("who comes back hears %d messages of %d workers; nothing has changed", messages, told)
		}
		stop()
	})
}
