package worker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine"
)

// TestNewsIsSplit: news and ends of any length go in messages of bounded size, tokens before the end
// that they belong to.
func TestNewsIsSplit(t *testing.T) {
	o, _ := box(Settings{})
	now := time.Unix(1000, 0)
	var all []int32
	for i := range int32(3 * newsBytes / tokenBytes) {
		all = append(all, i)
	}
	for _, id := range []string{"runs", "ends"} {
		q := ask(id, len(all))
		o.open(q, 1, 1)
	}
	o.add([]engine.Event{tokens("runs", 0, all...), last(tokens("ends", 0, all...))}, now)
	accounts := map[string]map[int32]*account{"runs": {}, "ends": {}}
	take := func(p *pb.Progress) {
		if n := proto.Size(p); n > 2*newsBytes {
			t.Errorf("a message of %d bytes", n)
		}
		for _, r := range p.GetRequests() {
			learn(t, accounts[r.RequestId], r.Choices)
		}
	}
	messages := 0
	for ended := false; !ended; messages++ {
		f, p := o.finished(now)
		take(p)
		for _, r := range f.GetRequests() {
			learn(t, accounts["ends"], r.Choices)
			ended = true
		}
	}
	for more := true; more; messages++ {
		var p *pb.Progress
		p, more = o.checkpoint()
		take(p)
	}
	if messages < 6 || messages > 10 {
		t.Errorf("%d messages", messages)
	}
	for id, a := range accounts {
		if !slices.Equal(a[0].tokens, all) || (a[0].finish != 0) != (id == "ends") {
			t.Errorf("%s: told %d tokens of %d, finish %v", id, len(a[0].tokens), len(all), a[0].finish)
		}
	}
}

// TestEveryTokenIsToldOnce: whatever the order of steps, checkpoints, broken sessions and redirects, a
// leader's session hears every token since its dispatch once and in order, and so do the gateways.
func TestEveryTokenIsToldOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		o, _ := box(Settings{})
		now := time.Unix(1000, 0)
		type run struct {
			accounts map[int32]*account // of the leader's session
			first    int32
			tokens   [2][]int32
			ended    [2]bool
			told     bool
			gateway  string
			received [2][]int32 // of the gateway that it streams to, from first on
			closed   [2]bool
		}
		runs := map[string]*run{}
		sessions := map[string]*session{}
		for _, g := range []string{"g1", "g2"} {
			sessions[g] = o.attach(&pb.AttachHello{GatewayId: g})
		}
		ids := func() []string {
			var ids []string
			for id := range runs {
				ids = append(ids, id)
			}
			slices.Sort(ids)
			return ids
		}
		hear := func(f *pb.Finished, p *pb.Progress) {
			for _, r := range p.GetRequests() {
				if runs[r.RequestId].told {
					rt.Fatalf("progress of %s after its end", r.RequestId)
				}
				learn(t, runs[r.RequestId].accounts, r.Choices)
			}
			for _, r := range f.GetRequests() {
				x := runs[r.RequestId]
				learn(t, x.accounts, r.Choices)
				x.told = true
				for c := range x.tokens {
					a := x.accounts[int32(c)]
					if a == nil || a.finish == 0 || a.first != x.first || !slices.Equal(a.tokens, x.tokens[c]) {
						rt.Fatalf("%s/%d: told %+v, want %v from %d on", r.RequestId, c, a, x.tokens[c], x.first)
					}
				}
			}
		}
		read := func(g string) {
			events, _ := o.collect(nil, sessions[g], int64(rapid.IntRange(1, 500).Draw(rt, "room")))
			for _, e := range events {
				x := runs[e.RequestId]
				if x.gateway != g {
					rt.Fatalf("%s heard %v, which streams to %s", g, e, x.gateway)
				}
				if at := x.first + int32(len(x.received[e.Choice])); e.First != at || x.closed[e.Choice] {
					rt.Fatalf("%s has %s up to %d (closed: %v) and heard %v", g, e.RequestId, at, x.closed[e.Choice], e)
				}
				x.received[e.Choice] = append(x.received[e.Choice], e.TokenIds...)
				x.closed[e.Choice] = e.FinishReason != 0
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"dispatch": func(rt *rapid.T) {
				id := fmt.Sprint("r", len(runs))
				x := &run{accounts: map[int32]*account{}, first: rapid.Int32Range(0, 3).Draw(rt, "first"), gateway: "g1"}
				q := ask(id, 100)
				q.Sampling.N = 2
				q.Generated = []*pb.TokenIds{{Ids: make([]int32, x.first)}, {Ids: make([]int32, x.first)}}
				o.open(q, 1, 1)
				runs[id] = x
			},
			"step": func(rt *rapid.T) {
				var events []engine.Event
				for _, id := range ids() {
					x := runs[id]
					for c := range x.tokens {
						if x.ended[c] || rapid.IntRange(0, 2).Draw(rt, "waits") == 0 {
							continue
						}
						token := rapid.Int32Range(0, 9).Draw(rt, "token")
						e := tokens(id, x.first+int32(len(x.tokens[c])), token)
						e.Choice = int32(c)
						x.tokens[c] = append(x.tokens[c], token)
						if rapid.IntRange(0, 4).Draw(rt, "ends") == 0 {
							x.ended[c] = true
							e.Finish, e.Done = pb.FinishReason_FINISH_REASON_STOP, x.ended[0] && x.ended[1]
						}
						events = append(events, e)
					}
				}
				o.add(events, now)
			},
			"ends":       func(*rapid.T) { hear(o.finished(now)) },
			"checkpoint": func(*rapid.T) { p, _ := o.checkpoint(); hear(nil, p) },
			"new leader": func(*rapid.T) {
				listed := o.resync(now)
				for id, x := range runs {
					if !slices.Contains(listed, id) {
						rt.Fatalf("the hello names %v and not %s", listed, id)
					}
					x.accounts, x.told = map[int32]*account{}, false
				}
			},
			"read": func(rt *rapid.T) { read(rapid.SampledFrom([]string{"g1", "g2"}).Draw(rt, "gateway")) },
			"redirect": func(rt *rapid.T) {
				for _, id := range ids() {
					x := runs[id]
					if to := rapid.SampledFrom([]string{"g1", "g2"}).Draw(rt, "to"); to != x.gateway {
						x.gateway, x.received, x.closed = to, [2][]int32{}, [2]bool{}
						o.redirect(id, to)
					} else {
						o.redirect(id, to)
					}
				}
			},
			"resume": func(rt *rapid.T) {
				for _, id := range ids() {
					x := runs[id]
					var have []int32
					for c := range x.received {
						n := rapid.IntRange(0, len(x.received[c])).Draw(rt, "kept")
						x.received[c], x.closed[c] = x.received[c][:n], false
						have = append(have, x.first+int32(n))
					}
					o.resume(sessions[x.gateway], &pb.ResumePoint{RequestId: id, Received: have})
				}
			},
		})
		// In the end everybody knows everything.
		for range 2 * len(runs) {
			hear(o.finished(now))
		}
		for more := true; more; {
			var p *pb.Progress
			p, more = o.checkpoint()
			hear(nil, p)
		}
		for range 400 * len(runs) {
			read("g1")
			read("g2")
		}
		for id, x := range runs {
			for c := range x.tokens {
				a := x.accounts[int32(c)]
				if a == nil {
					a = &account{}
				}
				if !slices.Equal(a.tokens, x.tokens[c]) || (a.finish != 0) != x.ended[c] {
					rt.Fatalf("%s/%d: the leader knows %+v of %v", id, c, a, x.tokens[c])
				}
				if !slices.Equal(x.received[c], x.tokens[c]) || x.closed[c] != x.ended[c] {
					rt.Fatalf("%s/%d: %s has %v (closed: %v) of %v", id, c, x.gateway, x.received[c], x.closed[c], x.tokens[c])
				}
			}
		}
	})
}

// TestRevokedIsNoEnd: a leader that loses its office revokes what it handed out, and the next one may
// find the dispatch in the log. The request is not over then.
func TestRevokedIsNoEnd(t *testing.T) {
	o, _ := box(Settings{})
	now := time.Unix(1000, 0)
	o.open(ask("a", 8), 3, 7)
	o.add([]engine.Event{tokens("a", 0, 1, 2)}, now)
	o.revoke("a")
	o.add([]engine.Event{{RequestID: "a", Finish: pb.FinishReason_FINISH_REASON_ABORT, Error: "revoked", Done: true}}, now)
	f, _ := o.finished(now)
	if len(f.GetRequests()) != 1 {
		t.Fatalf("told %v", f)
	}
	if e := f.Requests[0]; !e.Returned || e.FinishReason != 0 || e.Index != 7 || e.Term != 3 {
		t.Errorf("told %v, want that dispatch (3, 7) is returned", e)
	}
}
