package state

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// ErrUnknownCommand means that the log holds something this version cannot apply. Carrying on
// would make this node differ from the others, so the caller must stop.
var ErrUnknownCommand = errors.New("the log holds a command that this version does not know; run the version that wrote it, or a newer one")

// errIncomplete means that a command lacks the message that it is about. No leader writes such a one.
var errIncomplete = errors.New("the command has no request, worker, node, tenant or pool")

// Result says what one command did.
type Result struct {
	// Changed is false where the command found nothing to do: a repeat, or one that came too late.
	Changed bool
	// Refused says why a submit, a worker or an operator's command was not admitted; nothing has changed
	// then, and there is no record.
	Refused *Refusal
	// Record is the request after the command; nil for worker commands and unknown requests.
	Record *Record
}

// Apply applies one log entry and returns a result a command, in order. On an error nothing has
// changed and the node must stop. Indexes must grow.
func (s *Store) Apply(index, term uint64, data []byte) ([]Result, error) {
	before := s.View()
	if index <= before.index {
		panic(fmt.Sprintf("state: entry %d applied after entry %d", index, before.index))
	}
	entry := &pb.Entry{}
	if err := proto.Unmarshal(data, entry); err != nil {
		return nil, fmt.Errorf("log entry %d does not decode: %w", index, err)
	}
	if len(entry.ProtoReflect().GetUnknown()) > 0 {
		return nil, fmt.Errorf("log entry %d: %w", index, ErrUnknownCommand)
	}

	txn := s.db.Txn(true)
	defer txn.Abort()
	txn.TrackChanges()
	a := &application{
		txn:      txn,
		at:       Position{term, index},
		nowMS:    max(before.timeMS, entry.GetTimeMs()),
		kept:     before.kept,
		keep:     before.keep,
		ending:   map[string]bool{},
		accounts: map[string]*Account{},
		models:   map[string]*Model{},
	}
	results := make([]Result, len(entry.GetCommands()))
	for i, command := range entry.GetCommands() {
		result, err := a.command(command)
		if err != nil {
			return nil, fmt.Errorf("log entry %d, command %d: %w", index, i, err)
		}
		results[i] = result
	}
	a.keepAccounts()
	a.keepModels()
	a.forgetUploads()
	a.forget()
	hash := chain(before.chainHash, index, term, data, a.nowMS, txn.Changes())
	txn.Commit()
	s.view.Store(&View{
		db:        s.db.Snapshot(),
		index:     index,
		chainHash: hash,
		timeMS:    a.nowMS,
		kept:      a.kept,
		keep:      a.keep,
	})
	return results, nil
}

// application is one entry while it is being applied.
type application struct {
	txn   *memdb.Txn
	at    Position
	nowMS int64
	// kept sums up what is kept of ended requests, keep says how much that may be, ending are the tenants of
	// which requests ended in this entry.
	kept   tally
	keep   Retention
	ending map[string]bool
	// accounts and models are those that the entry touched.
	accounts map[string]*Account
	models   map[string]*Model
}

func (a *application) command(c *pb.Command) (Result, error) {
	if len(c.ProtoReflect().GetUnknown()) > 0 {
		return Result{}, ErrUnknownCommand
	}
	switch c := c.GetCommand().(type) {
	case *pb.Command_Submit:
		if c.Submit.GetRequest() == nil {
			return Result{}, errIncomplete
		}
		return a.submit(c.Submit), unknownFields(c.Submit)
	case *pb.Command_Assign:
		return a.assign(c.Assign), unknownFields(c.Assign)
	case *pb.Command_Finish:
		return a.finish(c.Finish), unknownFields(c.Finish)
	case *pb.Command_Worker:
		if c.Worker.GetWorker() == nil {
			return Result{}, errIncomplete
		}
		return a.worker(c.Worker), errors.Join(unknownFields(c.Worker), unknownFields(c.Worker.GetModel()))
	case *pb.Command_Requeue:
		return a.requeue(c.Requeue), unknownFields(c.Requeue)
	case *pb.Command_Node:
		if c.Node.GetNode() == nil {
			return Result{}, errIncomplete
		}
		return a.node(c.Node), unknownFields(c.Node)
	case *pb.Command_Tenant:
		if c.Tenant.GetTenant() == nil {
			return Result{}, errIncomplete
		}
		return a.tenant(c.Tenant), errors.Join(unknownFields(c.Tenant), unknownFields(c.Tenant.GetTenant()))
	case *pb.Command_Pool:
		if c.Pool.GetPool() == nil {
			return Result{}, errIncomplete
		}
		return a.pool(c.Pool), errors.Join(unknownFields(c.Pool), unknownFields(c.Pool.GetPool()))
	case *pb.Command_Cordon:
		return a.cordon(c.Cordon), unknownFields(c.Cordon)
	case *pb.Command_PromptPart:
		return a.part(c.PromptPart), unknownFields(c.PromptPart)
	case *pb.Command_Progress:
		return a.progress(c.Progress), unknownFields(c.Progress)
	case *pb.Command_Adopt:
		return a.adopt(c.Adopt), unknownFields(c.Adopt)
	case *pb.Command_Bind:
		if c.Bind.GetModel() == nil {
			return Result{}, errIncomplete
		}
		return a.bind(c.Bind), errors.Join(unknownFields(c.Bind), unknownFields(c.Bind.GetModel()))
	case *pb.Command_Retention:
		return a.retain(c.Retention), errors.Join(unknownFields(c.Retention), unknownFields(c.Retention.GetRetention()))
	}
	return Result{}, ErrUnknownCommand
}

// unknownFields refuses a known command with a field of a newer version: the field may change what
// the command means.
func unknownFields(m proto.Message) error {
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return ErrUnknownCommand
	}
	return nil
}

func (a *application) submit(c *pb.SubmitCommand) Result {
	request, refused := a.assemble(c)
	if refused != nil {
		return Result{Refused: refused}
	}
	known := a.request(request.GetId())
	if known != nil {
		if !c.GetRerun() || known.Phase != Finished || !bytes.Equal(known.Digest, c.GetDigest()) || !bytes.Equal(known.PromptDigest, c.GetPromptDigest()) {
			return Result{Record: known}
		}
	}
	if refused := a.admit(request); refused != nil {
		return Result{Refused: refused}
	}
	var outputs []*pb.Output
	if known != nil {
		a.drop(known)
		outputs = known.Whole()
	}
	a.model(request.GetModel()).Live++
	return a.put(&Record{
		Request:      request,
		Outputs:      outputs,
		PromptTokens: int32(len(request.GetPrompt())),
		Digest:       c.GetDigest(),
		PromptDigest: c.GetPromptDigest(),
		Phase:        Queued,
		Submitted:    a.at,
		ArrivalMS:    a.nowMS,
		DeadlineMS:   c.GetDeadlineMs(),
	})
}

func (a *application) assign(c *pb.AssignCommand) Result {
	old := a.request(c.GetRequestId())
	if old == nil || old.Phase != Queued {
		return Result{Record: old}
	}
	r := *old
	r.Phase = Assigned
	r.WorkerID = c.GetWorkerId()
	r.Dispatched = Position{c.GetTerm(), c.GetIndex()}
	r.Redirected = false
	r.Attempts++
	a.served(r.Request.GetTenant(), int64(r.PromptTokens))
	return a.put(&r)
}

func (a *application) requeue(c *pb.RequeueCommand) Result {
	old := a.request(c.GetRequestId())
	if old == nil || old.Phase != Assigned || old.WorkerID != c.GetWorkerId() {
		return Result{Record: old}
	}
	r := *old
	r.Phase = Queued
	r.WorkerID = ""
	r.Dispatched = Position{}
	r.Redirected = false
	return a.put(&r)
}

func (a *application) progress(c *pb.ProgressCommand) Result {
	old := a.request(c.GetRequestId())
	if old == nil || old.Phase == Finished {
		return Result{Record: old}
	}
	outputs, grown, changed := extend(old.Outputs, choices(old.Request), c.GetChoices())
	if !changed {
		return Result{Record: old}
	}
	r := *old
	r.Outputs = outputs
	if grown > 0 {
		r.Attempts = 0
		a.served(r.Request.GetTenant(), 2*int64(grown))
	}
	return a.put(&r)
}

func (a *application) adopt(c *pb.AdoptCommand) Result {
	old := a.request(c.GetRequestId())
	if old != nil && old.Request.GetTenant() != c.GetTenant() {
		return Result{}
	}
	if old == nil || c.GetGatewayId() == "" || old.Request.GetGatewayId() == c.GetGatewayId() {
		return Result{Record: old}
	}
	r := *old
	r.Request = WithGateway(old.Request, c.GetGatewayId())
	r.Redirected = old.Phase == Assigned
	return a.put(&r)
}

func (a *application) finish(c *pb.FinishCommand) Result {
	old := a.request(c.GetRequestId())
	if old == nil || old.Phase == Finished {
		return Result{Record: old}
	}
	r := *old
	outputs, grown, _ := extend(old.Outputs, choices(old.Request), c.GetChoices())
	r.Outputs = outputs
	a.served(r.Request.GetTenant(), 2*int64(grown))
	a.account(r.Request.GetTenant()).Live -= int64(choices(r.Request))
	a.model(r.Request.GetModel()).Live--
	if stopped(c.GetFinishReason()) && !complete(r.Outputs) {
		r.Outputs = nil // A part would pass for the whole.
	}
	r.Request = Slim(old.Request)
	r.Phase = Finished
	r.Redirected = false
	r.FinishReason = c.GetFinishReason()
	r.Error = c.GetError()
	r.Usage = c.GetUsage()
	r.FinishedMS = a.nowMS
	r.Outputs = trimmed(slices.Clone(r.Outputs))
	a.keepEnd(&r)
	return a.put(&r)
}

func (a *application) request(id string) *Record {
	return first[*Record](a.txn, requestsTable, id)
}

func (a *application) put(r *Record) Result {
	must(a.txn.Insert(requestsTable, r))
	return Result{Changed: true, Record: r}
}

// must turns an error that only a wrong schema can cause into a panic.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("state: %v", err))
	}
}
