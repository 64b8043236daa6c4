package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// Why requests are not admitted, or end before a worker began them, in a word: clients are told it beside
// the sentence, and counts are by it. A limit of a tenant is tenantLimit and its name.
const (
	reasonQueueSequences = "queue_sequences"
	reasonQueueBytes     = "queue_bytes"
	reasonDeadline       = "deadline"
	reasonTooLong        = "too_long"
	reasonNoWorker       = "no_worker"
	reasonUnknownModel   = "unknown_model"
	reasonLost           = "lost"
	reasonUpload         = "upload"
	tenantLimit          = "tenant_"
)

// OthersRefused stands for all beyond the first namesCounted models or tenants that were refused anything, and
// for models that nobody serves: clients make up many.
const (
	OthersRefused = "(others)"
	namesCounted  = 256
)

// refusal is why a request is not admitted: the word, and what its client gets.
type refusal struct {
	reason string
	err    error
}

// refuse makes a refusal. retry is when trying again makes sense; 0 if it does not.
func refuse(reason string, code codes.Code, retry time.Duration, format string, args ...any) *refusal {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: "quire"}}
	if retry > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
	}
	return &refusal{reason, rpc.Detailed(code, fmt.Sprintf(format, args...), details...)}
}

// refusedByLog is a refusal of the log's.
func refusedByLog(why *state.Refusal) *refusal {
	reason := reasonUpload
	if why.Limit != "" {
		reason = tenantLimit + why.Limit
	}
	return refuse(reason, codes.ResourceExhausted, time.Duration(why.RetryMS)*time.Millisecond, "%s", why.Reason)
}

// Refused is how many requests of a model or a tenant were refused for a reason.
type Refused struct {
	Name, Reason string
	Requests     int64
}

// refusals counts what this node refused as the leader, since it started: a process's counts never go
// back, whoever leads.
type refusals struct {
	mu              sync.Mutex
	models, tenants countsByName
}

func (c *refusals) count(model, tenant, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if reason == reasonUnknownModel {
		model = OthersRefused
	}
	c.models.add(model, reason)
	c.tenants.add(tenant, reason)
}

func (c *refusals) list() (models, tenants []Refused) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.models.list(), c.tenants.list()
}

// countRefusal counts a request that is not admitted.
func (l *leader) countRefusal(r *live, reason string) {
	l.s.refusals.count(r.request.GetModel(), r.request.GetTenant(), reason)
}

// giveUp ends a request that waits, and counts why.
func (l *leader) giveUp(r *live, reason string, command *pb.FinishCommand) {
	l.countRefusal(r, reason)
	l.finish(r, command)
}

// countsByName has counts by reason for a bounded number of names.
type countsByName map[string]map[string]int64

func (c *countsByName) add(name, reason string) {
	if *c == nil {
		*c = countsByName{OthersRefused: {}}
	}
	if (*c)[name] == nil {
		if len(*c) > namesCounted {
			name = OthersRefused
		} else {
			(*c)[name] = map[string]int64{}
		}
	}
	(*c)[name][reason]++
}

func (c countsByName) list() (out []Refused) {
	for _, name := range slices.Sorted(maps.Keys(c)) {
		for _, reason := range slices.Sorted(maps.Keys(c[name])) {
			out = append(out, Refused{name, reason, c[name][reason]})
		}
	}
	return out
}
