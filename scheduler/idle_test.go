package scheduler

import (
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// BenchmarkIdleLeader is what 100 workers without work cost: their sessions over real connections,
// with heartbeats at the default interval. The workers' own share is in the number too, since they run
// in the same process. An operation is a second.
func BenchmarkIdleLeader(b *testing.B) {
	const workers = 100
	s := start(b, Settings{DataDir: b.TempDir()})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterControlServer(server, s)
	go func() { _ = server.Serve(listener) }() // Stop ends it.
	b.Cleanup(server.Stop)
	for n := range workers {
		conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = conn.Close() })
		work, err := pb.NewControlClient(conn).Work(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		info := newWorker(b, fmt.Sprint("w", n)).info
		if err := work.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: &pb.Hello{Worker: info}}}); err != nil {
			b.Fatal(err)
		}
		go func() { // Ends with its stream.
			for {
				if _, err := work.Recv(); err != nil {
					return
				}
			}
		}()
		go func() {
			beat := time.NewTicker(s.settings.HeartbeatInterval)
			defer beat.Stop()
			for sequence := uint64(1); ; sequence++ {
				select {
				case <-work.Context().Done():
					return
				case <-beat.C:
				}
				h := &pb.Heartbeat{Sequence: sequence, FreeBlocks: info.GetTotalBlocks(), Devices: []*pb.DeviceFrame{{
					Uuid: "gpu", Name: "a device", MemoryTotalBytes: 80 << 30, UtilisationPct: 3, TemperatureC: 40, DeratePermille: 1000,
				}}}
				if work.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Heartbeat{Heartbeat: h}}) != nil {
					return
				}
			}
		}()
	}
	until(b, "the workers are in session", func() bool { return s.Stats().Workers == workers })
	cpu, began := cpuTime(b), time.Now()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for b.Loop() {
		<-second.C
	}
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(time.Since(began)), "cores")
}
