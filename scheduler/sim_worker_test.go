package scheduler

import (
	"maps"
	"slices"
	"sync"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// simWorker is a worker with a fake engine: every running choice gets a token a step. It keeps the
// worker's side of the protocol with the leader and with gateways.
type simWorker struct {
	w    *world
	info *pb.WorkerInfo
	done sync.WaitGroup

	mu       sync.Mutex
	alive    bool
	draining bool
	lends    int // steps that it stays for after it has handed over
	runs     map[string]*simRun
	// reports may have been lost with their session; they are sent again in the next.
	reports     []*pb.FinishedRequest
	reported    int
	term, index uint64
	sequence    uint64
	stream      *stream
}

// simRun is a request on a worker.
type simRun struct {
	request     *pb.Request
	term, index uint64
	gateway     string
	choices     [][]int32
	given       []int // tokens that it says nothing of
	// told is what the session's leader was told, sent what the gateway was; session says which of
	// the gateway's sessions sent is about.
	told, sent    []int
	endTold       []bool
	session       int
	sentDone      bool
	done, revoked bool
}

func newSimWorker(w *world, id string) *simWorker {
	return &simWorker{w: w, info: &pb.WorkerInfo{
		Id: id, Address: id + ":1", Model: "m", ContextLength: 4096, BlockTokens: 16, TotalBlocks: 4096,
		MaxSequences: 8, MaxBatchTokens: 2048,
	}}
}

func (k *simWorker) isAlive() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.alive
}

const simStep = 20 * time.Millisecond

// start runs the worker's process until it is killed.
func (k *simWorker) start() {
	k.done.Wait()
	k.mu.Lock()
	k.alive, k.draining, k.lends = true, false, 0
	k.runs = map[string]*simRun{}
	k.reports, k.reported, k.term, k.index = nil, 0, 0, 0
	k.mu.Unlock()
	k.done.Go(k.live)
}

// kill ends the process: connections break, and nobody listens at its port.
func (k *simWorker) kill() {
	k.mu.Lock()
	k.alive = false
	str := k.stream
	k.mu.Unlock()
	if str != nil {
		str.cancel()
	}
}

// quit lets the worker hand back what it runs, stay for some steps and say goodbye.
func (k *simWorker) quit(lends int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.draining, k.lends = true, lends
}

// live is the process: steps, and sessions with whoever leads.
func (k *simWorker) live() {
	tick := time.NewTicker(simStep)
	defer tick.Stop()
	var session *stream
	var on string
	silent := 0
	for n := 0; ; n++ {
		select {
		case <-k.w.ctx.Done():
			k.kill()
		case <-tick.C:
		}
		if !k.isAlive() {
			return
		}
		k.step()
		if session == nil {
			session, on = k.join()
			silent = 0
			continue
		}
		if !k.w.linked(k.info.GetId(), on) {
			// What is sent waits, and nothing arrives, until the worker gives the leader up.
			if silent++; time.Duration(silent)*simStep > 3*time.Second || !k.w.runs(on) {
				session.cancel()
				session = nil
			}
			continue
		}
		if k.w.pick(10) == 0 {
			continue
		}
		silent = 0
		if k.talk(session, n) {
			return
		}
		if session.ctx.Err() != nil && len(session.down) == 0 {
			session = nil
		}
	}
}

// join opens a session with the leader, if there is one in reach.
func (k *simWorker) join() (*stream, string) {
	n := k.w.leader()
	if n == nil || !k.w.linked(k.info.GetId(), n.id) {
		return nil, ""
	}
	s := n.scheduler()
	if s == nil {
		return nil, ""
	}
	str := newStream()
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.alive {
		return nil, ""
	}
	k.stream = str
	hello := &pb.Hello{Worker: k.info}
	k.reported = 0
	for _, f := range k.reports {
		hello.Running = append(hello.Running, f.GetRequestId())
	}
	for _, id := range slices.Sorted(maps.Keys(k.runs)) {
		run := k.runs[id]
		if !run.done && !run.revoked {
			hello.Running = append(hello.Running, id)
		}
		run.told, run.endTold = slices.Clone(run.given), make([]bool, len(run.choices))
	}
	str.up <- &pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: hello}}
	k.done.Go(func() {
		_ = s.Work(str) // Whatever ended it, the worker joins again.
		str.cancel()
	})
	return str, n.id
}

// talk exchanges what there is; true says that the worker is done.
func (k *simWorker) talk(str *stream, n int) bool {
	for len(str.down) > 0 {
		k.take(<-str.down)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*pb.WorkRequest
	if n%5 == 0 || k.draining {
		if p := k.checkpoint(); p != nil {
			out = append(out, &pb.WorkRequest{Message: &pb.WorkRequest_Progress{Progress: p}})
		}
		k.sequence++
		running := 0
		for _, run := range k.runs {
			if !run.done {
				running += len(run.choices)
			}
		}
		out = append(out, &pb.WorkRequest{Message: &pb.WorkRequest_Heartbeat{Heartbeat: &pb.Heartbeat{
			Sequence: k.sequence, Running: int32(running), FreeBlocks: 2048, DispatchIndex: k.index, Draining: k.draining,
		}}})
	}
	if k.draining {
		for _, id := range slices.Sorted(maps.Keys(k.runs)) {
			if run := k.runs[id]; !run.done && !run.revoked {
				run.revoked = true
				k.w.handOver(k.info.GetAddress(), id)
				k.reports = append(k.reports, k.report(run, &pb.FinishedRequest{RequestId: id, Returned: true, Term: run.term, Index: run.index}))
			}
		}
	}
	if fresh := k.reports[k.reported:]; len(fresh) > 0 {
		k.reported = len(k.reports)
		out = append(out, &pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: &pb.Finished{Requests: slices.Clone(fresh)}}})
	}
	if len(out) > 0 && k.w.pick(20) == 0 {
		out = append(out, out[len(out)-1]) // Told twice.
	}
	for _, m := range out {
		select {
		case str.up <- m:
		case <-str.ctx.Done():
			return false
		}
	}
	if k.lends--; !k.draining || k.lends > 0 {
		return false
	}
	k.alive = false
	close(str.up)
	return true
}

// checkpoint is what the leader was not told yet; k.mu is held.
func (k *simWorker) checkpoint() *pb.Progress {
	p := &pb.Progress{}
	for _, id := range slices.Sorted(maps.Keys(k.runs)) {
		if run := k.runs[id]; !run.done && !run.revoked {
			if choices := run.news(); len(choices) > 0 {
				p.Requests = append(p.Requests, &pb.RequestProgress{RequestId: id, Term: run.term, Index: run.index, Choices: choices})
			}
		}
	}
	if len(p.GetRequests()) == 0 {
		return nil
	}
	return p
}

func (r *simRun) news() (choices []*pb.ChoiceProgress) {
	for c, tokens := range r.choices {
		reason := ends(r.request, tokens)
		if r.told[c] == len(tokens) && (reason == 0 || r.endTold[c]) {
			continue
		}
		choices = append(choices, &pb.ChoiceProgress{
			Choice: int32(c), First: int32(r.told[c]), TokenIds: slices.Clone(tokens[r.told[c]:]), FinishReason: reason,
		})
		r.told[c], r.endTold[c] = len(tokens), reason != 0
	}
	return choices
}

// report completes what the leader is told of an end with all the output, because the report may be
// sent again in another session.
func (k *simWorker) report(run *simRun, f *pb.FinishedRequest) *pb.FinishedRequest {
	for c, tokens := range run.choices {
		f.Choices = append(f.Choices, &pb.ChoiceProgress{
			Choice: int32(c), First: int32(run.given[c]), TokenIds: slices.Clone(tokens[run.given[c]:]), FinishReason: ends(run.request, tokens),
		})
	}
	return f
}

func (k *simWorker) take(m *pb.WorkResponse) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch m := m.GetMessage().(type) {
	case *pb.WorkResponse_Welcome:
		k.term = max(k.term, m.Welcome.GetTerm())
	case *pb.WorkResponse_Dispatch:
		if m.Dispatch.GetTerm() < k.term {
			return
		}
		k.term, k.index = m.Dispatch.GetTerm(), m.Dispatch.GetIndex()
		for _, r := range m.Dispatch.GetRequests() {
			k.run(r, m.Dispatch.GetTerm(), m.Dispatch.GetIndex())
		}
	case *pb.WorkResponse_Revoke:
		if m.Revoke.GetTerm() < k.term {
			return
		}
		for _, id := range m.Revoke.GetRequestIds() {
			if run := k.runs[id]; run != nil && !run.done && !run.revoked {
				run.revoked = true
				// The leader may find out that the dispatch was committed after all.
				k.w.handOver(k.info.GetAddress(), id)
				k.reports = append(k.reports, k.report(run, &pb.FinishedRequest{RequestId: id, Returned: true, Term: run.term, Index: run.index}))
			}
		}
	case *pb.WorkResponse_Redirect:
		if run := k.runs[m.Redirect.GetRequestId()]; run != nil && m.Redirect.GetTerm() >= k.term && run.gateway != m.Redirect.GetGatewayId() {
			run.gateway, run.session = m.Redirect.GetGatewayId(), 0
		}
	}
}

func (k *simWorker) run(r *pb.Request, term, index uint64) {
	if old := k.runs[r.GetId()]; old != nil && !old.done && !old.revoked {
		k.w.t.Errorf("worker %s: request %s came twice", k.info.GetId(), r.GetId())
		return
	}
	if from := r.GetKvSource(); from != "" {
		k.w.source(from, r.GetId())
	}
	run := &simRun{request: r, term: term, index: index, gateway: r.GetGatewayId()}
	truth := undisturbed(r)
	for c := range truth {
		var tokens []int32
		if c < len(r.GetGenerated()) {
			tokens = slices.Clone(r.GetGenerated()[c].GetIds())
		}
		if len(tokens) > len(truth[c]) || !slices.Equal(tokens, truth[c][:len(tokens)]) {
			k.w.t.Errorf("worker %s: request %s goes on after %v; choice %d has %v", k.info.GetId(), r.GetId(), tokens, c, truth[c])
		}
		run.choices = append(run.choices, tokens)
		if r.GetSampling().Logprobs != nil {
			run.given = append(run.given, 0) // It says those again, with their log-probabilities.
		} else {
			run.given = append(run.given, len(tokens))
		}
	}
	run.told, run.endTold = slices.Clone(run.given), make([]bool, len(truth))
	k.runs[r.GetId()] = run
}

// step gives every running choice a token.
func (k *simWorker) step() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(k.runs)) {
		run := k.runs[id]
		if run.revoked {
			delete(k.runs, id)
			continue
		}
		if run.done {
			continue // Kept until its gateway has it.
		}
		open := false
		completion := 0
		for c := range run.choices {
			if ends(run.request, run.choices[c]) == 0 {
				run.choices[c] = append(run.choices[c], following(run.request.GetSampling().GetSeed(), c, run.choices[c]))
				open = open || ends(run.request, run.choices[c]) == 0
			}
			completion += len(run.choices[c])
		}
		if !open {
			run.done = true
			k.reports = append(k.reports, k.report(run, &pb.FinishedRequest{
				RequestId: id, FinishReason: ends(run.request, run.choices[0]), Term: run.term, Index: run.index,
				Usage: &pb.Usage{PromptTokens: int32(len(run.request.GetPrompt())), CompletionTokens: int32(completion)},
			}))
		}
	}
}

// collect is what the worker has for a gateway. A session that is not the one of the last time says
// what the gateway has received.
func (k *simWorker) collect(gateway string, session int, received func(id string) []int) []*pb.TokenEvent {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.alive {
		return nil
	}
	var out []*pb.TokenEvent
	for _, id := range slices.Sorted(maps.Keys(k.runs)) {
		run := k.runs[id]
		if run.gateway != gateway || run.revoked {
			continue
		}
		if run.session != session {
			run.session, run.sent, run.sentDone = session, slices.Clone(run.given), false
			for c, n := range received(id) {
				run.sent[c] = min(max(run.sent[c], n), len(run.choices[c]))
			}
		}
		for c, tokens := range run.choices {
			reason := ends(run.request, tokens)
			if run.sent[c] == len(tokens) && (!run.done || run.sentDone) {
				continue
			}
			out = append(out, &pb.TokenEvent{
				RequestId: id, Choice: int32(c), First: int32(run.sent[c]), TokenIds: slices.Clone(tokens[run.sent[c]:]),
				FinishReason: reason, Term: run.term, Index: run.index,
			})
			run.sent[c] = len(tokens)
		}
		run.sentDone = run.done
	}
	return out
}
