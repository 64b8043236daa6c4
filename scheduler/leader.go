package scheduler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/roster"
	"github.com/quire-serve/quire/scheduler/batch"
	"github.com/quire-serve/quire/scheduler/prefix"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// leader is everything that this node knows because it leads. It is memory only: built from the
// replicated state when leadership begins, dropped when it ends.
//
// Calls change it under mu and kick the loop. The loop makes one log entry of all that has gathered
// (compose), sends what the entry hands to workers at once, in parallel with the commit, and learns
// the outcome from the log (settle). An entry that fails ends the leadership: what it handed out is
// revoked, and the next leader, perhaps this node, starts from the log.
type leader struct {
	s     *Scheduler
	term  uint64
	clock clock

	kicked chan struct{}
	// done is closed when the leadership is over.
	done chan struct{}
	// failed receives the error that ends it.
	failed chan error

	mu      sync.Mutex
	batcher *batch.Batcher
	// prefixes knows what the caches of the workers in session hold.
	prefixes *prefix.Index
	live     map[string]*live
	// What waits for the next entry, in order.
	submits submits
	// uploading is the one of them whose prompt goes in parts, if one does.
	uploading *live
	// uploads counts the prompts that went in parts.
	uploads    uint64
	finishes   []*ending
	returns    []*live
	progressed []*live
	// checkpoints bounds what goes into the log of these.
	checkpoints allowance
	adopts      []*adoption
	orders      []*order
	workerNews  []*registration
	// recalls wait for gateways, in order.
	recalls []recall

	// workers are those in session and those that may come back; absent holds until when.
	// roster are those that gateways stay attached to: they are not lost, and were in session with this
	// leader or one before, whose end is no reason to break streams.
	workers  map[string]*pb.WorkerInfo
	absent   map[string]time.Time
	roster   *roster.Roster
	sessions map[string]*session
	onWorker map[string]map[string]*live
	models   map[string]served
	owners   map[string]*owner
	bindRate rate
	// unserved is since when no worker of a model takes requests.
	unserved map[string]time.Time
	// shrank is since when a model's workers hold shorter sequences than before.
	shrank map[string]time.Time
	// refusing says why requests for a model are refused, where that has lasted.
	refusing map[string]string
	// backlog is since when requests have been left waiting; zero if none are.
	backlog time.Time

	// ctx ends with the leadership; owned are the goroutines that end with it.
	ctx    context.Context
	cancel context.CancelFunc
	owned  sync.WaitGroup
}

// ending is the end of a request on its way to the log.
type ending struct {
	request *live
	command *pb.FinishCommand
}

// served is what the workers of one model can do.
type served struct {
	// maxTokens is the longest sequence, prompt and output together, that one of them can hold.
	maxTokens int
	// tenants have that of those that may hold less.
	tenants map[string]int
	// blockTokens is the size of their KV blocks; the smallest, if they differ.
	blockTokens int
}

// room is the longest sequence that a tenant may have, prompt and output together.
func (s served) room(tenant string) int {
	if tokens, ok := s.tenants[tenant]; ok {
		return tokens
	}
	return s.maxTokens
}

// less says whether somebody may have less than before.
func (s served) less(before served) bool {
	if s.maxTokens < before.maxTokens {
		return true
	}
	for tenant, tokens := range s.tenants {
		if tokens < before.room(tenant) {
			return true
		}
	}
	return false
}

// roomOf is the same on one worker.
func roomOf(w *pb.WorkerInfo, tenant string) int {
	blocks := w.GetTotalBlocks()
	for _, t := range w.GetTenants() {
		if t.GetTenant() == tenant {
			blocks = min(blocks, t.GetBlocks())
		}
	}
	return min(int(w.GetContextLength()), int(blocks)*int(w.GetBlockTokens()))
}

// entry is one log entry with what must happen once its fate is known.
type entry struct {
	pb       *pb.Entry
	outcomes []func(state.Result)
	// dispatched lists the requests handed to workers, to be revoked if the entry fails.
	dispatched map[string][]string
	bytes      int
	wait       func(context.Context) (any, error)
}

func (e *entry) add(c *pb.Command, size int, outcome func(state.Result)) {
	e.pb.Commands = append(e.pb.Commands, c)
	e.outcomes = append(e.outcomes, outcome)
	e.bytes += size
}

// lead serves as the leader until ctx ends or the log refuses an entry.
func (s *Scheduler) lead(ctx context.Context) error {
	// The barrier was appended under a term between the two that are read around it. Where they
	// differ, the newer may be another node's, and dispatches under it would break the fence.
	term := s.node.Term()
	if err := s.barrier(ctx); err != nil {
		return fmt.Errorf("wait for the log of earlier leaders: %w", err)
	}
	if now := s.node.Term(); now != term {
		return fmt.Errorf("the term went from %d to %d: %w", term, now, errLeadershipLost)
	}
	l := s.establish(term, s.settings.now())
	s.settings.Logger.Info("this node leads", "term", l.term, "unfinished", len(l.live))
	s.leader.Store(l)
	defer s.leader.Store(nil)
	defer l.close()
	defer s.members.Lead(ctx)()
	return l.run(ctx)
}

// establish builds the leader's memory from the tables. Requests that the log says are with a worker
// stay there for ReconnectGrace: the worker may come back running them.
func (s *Scheduler) establish(term uint64, now time.Time) *leader {
	l := &leader{
		s: s, term: term, clock: *s.clock.Load(),
		kicked: make(chan struct{}, 1), done: make(chan struct{}), failed: make(chan error, 1),
		live:    map[string]*live{},
		workers: map[string]*pb.WorkerInfo{}, absent: map[string]time.Time{},
		sessions: map[string]*session{}, onWorker: map[string]map[string]*live{},
		models: map[string]served{}, owners: map[string]*owner{}, unserved: map[string]time.Time{}, shrank: map[string]time.Time{},
	}
	s.tenures++
	l.roster = roster.New(term<<32 + s.tenures)
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.prefixes = prefix.New(s.settings.Prefix)
	placement := s.settings.Batch
	placement.Matcher = l.prefixes
	l.batcher = batch.New(placement)
	// Numbers grow over terms too, so that a worker's newest number means the same to every leader.
	s.dispatches = max(s.dispatches, term<<32)
	view := s.store.View()
	back := now.Add(s.settings.ReconnectGrace)
	for w := range view.Workers() {
		l.workers[w.GetId()] = w
		l.roster.Put(w)
		l.absent[w.GetId()] = back
	}
	l.countModels()
	l.restoreShares(view)
	admitted := make(chan struct{})
	close(admitted)
	hashing := inheritedTokens
	for record := range view.Live() {
		r := &live{
			request: record.Request, digest: record.Digest, promptDigest: record.PromptDigest, size: proto.Size(record.Request),
			attempts: record.Attempts, submitted: record.Submitted, redirected: record.Redirected,
			arrivalMS: record.ArrivalMS, deadlineMS: record.DeadlineMS, admitted: admitted, ended: make(chan struct{}),
		}
		r.remember(record.Outputs)
		if prompt := len(record.Request.GetPrompt()); prompt <= hashing {
			hashing -= prompt
			r.hashes = hashPrompt(record.Request, l.models[record.Request.GetModel()].blockTokens)
		}
		r.bytes, r.grewMS = memoryOf(r.request, r.hashes), r.arrivalMS
		l.live[record.Request.GetId()] = r
		l.own(r, now)
		if record.Phase == state.Assigned {
			r.phase = phaseAssigned
			r.worker, r.dispatched = record.WorkerID, record.Dispatched
			l.place(r)
			l.absent[r.worker] = back
			continue
		}
		l.enqueue(r)
	}
	if s.settings.Keep != view.Retention() {
		l.orders = append(l.orders, newOrder(&pb.Command{Command: &pb.Command_Retention{Retention: &pb.RetentionCommand{
			Retention: s.settings.Keep.ToProto(),
		}}}, func(state.Result) {}))
		l.kick()
	}
	for _, id := range slices.Sorted(maps.Keys(l.onWorker)) {
		if w := l.workers[id]; w != nil {
			l.probe(w)
		}
	}
	return l
}

// close ends all that depends on the leadership.
func (l *leader) close() {
	l.mu.Lock()
	close(l.done)
	l.cancel()
	for _, s := range l.sessions {
		s.close(errLeadershipLost)
	}
	for _, o := range l.owners {
		for w := range o.watchers {
			w.close(errLeadershipLost)
		}
	}
	l.mu.Unlock()
	l.owned.Wait()
}

func (l *leader) kick() {
	select {
	case l.kicked <- struct{}{}:
	default:
	}
}

func (l *leader) fail(err error) {
	select {
	case l.failed <- err:
	default:
	}
}

// run is the leader's loop: an entry an instant, as long as there is something to say.
func (l *leader) run(ctx context.Context) error {
	// What is on its way when leadership ends is mostly answered at once, but not where the disk hangs.
	waits, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(settleTimeout, giveUp) })()
	inFlight := make(chan *entry, entriesInFlight)
	var settled sync.WaitGroup
	settled.Go(func() {
		for e := range inFlight {
			l.settle(waits, e)
		}
	})
	defer settled.Wait()
	defer close(inFlight)

	ticker := time.NewTicker(housekeeping)
	defer ticker.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-l.failed:
			return err
		case <-ticker.C:
			l.housekeep(l.s.settings.now())
		case <-l.kicked:
		}
		if wait := instant - l.s.settings.now().Sub(last); wait > 0 {
			pause.Reset(wait)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-pause.C:
			}
		}
		last = l.s.settings.now()
		e := l.compose(last)
		if e == nil {
			continue
		}
		if err := l.propose(ctx, e); err != nil {
			l.undo(e, err)
			return err
		}
		inFlight <- e
	}
}

// settle waits for an entry's fate and acts on it.
func (l *leader) settle(ctx context.Context, e *entry) {
	answer, err := e.wait(ctx)
	if err != nil {
		l.undo(e, err)
		l.fail(err)
		return
	}
	results, ok := answer.([]state.Result)
	if !ok || len(results) != len(e.outcomes) {
		panic(fmt.Sprintf("scheduler: %d commands were answered with %T %v", len(e.outcomes), answer, answer))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, outcome := range e.outcomes {
		if outcome != nil {
			outcome(results[i])
		}
	}
}

// undo takes back what an entry handed out. Its requests may or may not be in the log: their
// submitters hear so when the leader closes, and may try again.
func (l *leader) undo(e *entry, err error) {
	l.s.settings.Logger.Warn("a log entry failed; its dispatches are revoked", "error", err, "commands", len(e.outcomes))
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, worker := range slices.Sorted(maps.Keys(e.dispatched)) {
		if session := l.sessions[worker]; session != nil {
			session.send(&pb.WorkResponse{Message: &pb.WorkResponse_Revoke{Revoke: &pb.Revoke{
				Term: l.term, RequestIds: e.dispatched[worker],
			}}})
		}
	}
}

// finish begins the end of a request, wherever it is.
func (l *leader) finish(r *live, command *pb.FinishCommand) {
	switch r.phase {
	case phaseQueued:
		l.batcher.Remove(r.request.GetId())
	case phaseAssigned:
		l.takeBack(r)
	}
	r.phase = phaseEnding
	command.RequestId = r.request.GetId()
	command.Error = rpc.Cut(command.GetError(), maxErrorBytes)
	l.finishes = append(l.finishes, &ending{request: r, command: command})
	l.kick()
}

// ended is called once the log has a request's end. The gateway hears of every one: a request may
// have stopped on a worker that died before it could send the last tokens.
func (l *leader) ended(f *ending, result state.Result) {
	delete(l.live, f.request.request.GetId())
	l.disown(f.request)
	close(f.request.ended)
	if result.Record != nil {
		l.news(result.Record.Request.GetGatewayId(), &pb.WatchResponse{Ended: []*pb.Ended{ended(result.Record)}})
	}
}

// place and displace keep the list of what a worker has.
func (l *leader) place(r *live) {
	on := l.onWorker[r.worker]
	if on == nil {
		on = map[string]*live{}
		l.onWorker[r.worker] = on
	}
	on[r.request.GetId()] = r
	if w := l.workers[r.worker]; w != nil {
		r.vocabulary = w.GetVocabulary()
	}
}

func (l *leader) displace(r *live) {
	on := l.onWorker[r.worker]
	delete(on, r.request.GetId())
	if len(on) == 0 {
		delete(l.onWorker, r.worker)
	}
}

func (l *leader) stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	running := 0
	for _, on := range l.onWorker {
		running += len(on)
	}
	return Stats{
		Queued: l.batcher.Len() + l.submits.len, QueuedBytes: l.batcher.Bytes() + l.submits.bytes,
		Queues:  l.batcher.Figures(l.clock.ms(l.s.settings.now())),
		Running: running, Workers: len(l.sessions),
	}
}

// countModels sums up what the known workers serve.
func (l *leader) countModels() {
	before := maps.Clone(l.models)
	clear(l.models)
	for _, w := range l.workers {
		m := l.models[w.GetModel()]
		m.maxTokens = max(m.maxTokens, roomOf(w, ""))
		for _, t := range w.GetTenants() {
			if m.tenants == nil {
				m.tenants = map[string]int{}
			}
			m.tenants[t.GetTenant()] = 0
		}
		if size := int(w.GetBlockTokens()); m.blockTokens == 0 || size < m.blockTokens {
			m.blockTokens = size
		}
		l.models[w.GetModel()] = m
	}
	for _, w := range l.workers {
		for tenant, tokens := range l.models[w.GetModel()].tenants {
			l.models[w.GetModel()].tenants[tenant] = max(tokens, roomOf(w, tenant))
		}
	}
	for name, m := range l.models {
		// What an earlier leader admitted may be longer than what there is now.
		if old, known := before[name]; !known || m.less(old) {
			l.shrank[name] = l.s.settings.now()
		}
	}
}

func (l *leader) modelNames() []string { return slices.Sorted(maps.Keys(l.models)) }
