package state

import (
	"fmt"
	"iter"
	"maps"
	"slices"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// MaxRate bounds a tenant's limits, MaxWeight its weight; larger ones count as these.
const (
	MaxRate   = 1_000_000_000_000
	MaxWeight = 1_000_000
	// MaxTenants bounds the tenants that have limits of their own. Every node must use the same value.
	MaxTenants = 10_000
	// maxServed keeps accounts from overflowing.
	maxServed = MaxRate * MaxWeight
)

// Account is what the log knows of a tenant: its limits, what is left of them, and what it was given.
// An account without limits lives as long as a request of its tenant does.
type Account struct {
	Name string
	// Limits are nil for a tenant that has none of its own.
	Limits *pb.Tenant
	// Live counts the sequences of admitted requests that have not ended: each has one for each of its choices.
	Live int64
	// requestsLeft and tokensLeft are the two buckets, in thousandths, as of refilledMS. A bucket
	// holds what a minute brings.
	requestsLeft, tokensLeft, refilledMS int64
	// Served is the cost of what was given: prompt tokens that were dispatched, and generated tokens
	// twice. A tenant that comes back after idling starts at the lowest share of those that are there,
	// so that idling saves up no credit.
	Served int64
}

// Refusal says why a request is not admitted.
type Refusal struct {
	Reason string
	// Limit is the tenant's limit that is reached, as operators write it; empty if it is something else.
	Limit string
	// RetryMS is when trying again makes sense; 0 if it never does.
	RetryMS int64
}

// Weight is the tenant's share beside others.
func (a *Account) Weight() int64 { return min(max(1, a.Limits.GetWeight()), MaxWeight) }

// share is what the tenant was given by its weight.
func (a *Account) share() int64 { return a.Served / a.Weight() }

// perMinute is a limit as the buckets count it.
func perMinute(limit int64) int64 { return min(max(0, limit), MaxRate) }

// refillStepMS is the time in which a bucket of n a minute gains n thousandths: whole steps lose no
// fraction, however often they are counted.
const refillStepMS = 60

// refill brings the buckets to nowMS.
func (a *Account) refill(nowMS int64) {
	if nowMS <= a.refilledMS {
		return
	}
	// The difference of two hostile times may overflow; it is a minute at least then.
	steps := uint64(nowMS-a.refilledMS) / refillStepMS
	if steps >= 1000 {
		a.requestsLeft, a.tokensLeft, a.refilledMS = 1000*perMinute(a.Limits.GetRequestsPerMinute()), 1000*perMinute(a.Limits.GetTokensPerMinute()), nowMS
		return
	}
	fill := func(left *int64, limit int64) {
		*left = min(1000*perMinute(limit), *left+int64(steps)*perMinute(limit))
	}
	fill(&a.requestsLeft, a.Limits.GetRequestsPerMinute())
	fill(&a.tokensLeft, a.Limits.GetTokensPerMinute())
	a.refilledMS += int64(steps) * refillStepMS
}

// Check says whether a request would be admitted at nowMS; nil if it would. It changes nothing.
func (a Account) Check(nowMS int64, r *pb.Request) *Refusal { return a.admit(nowMS, r) }

// Left is what is left of the two buckets at nowMS, in requests and tokens.
func (a Account) Left(nowMS int64) (requests, tokens int64) {
	a.refill(nowMS)
	return a.requestsLeft / 1000, a.tokensLeft / 1000
}

// admit takes a request into the account, or says why not.
func (a *Account) admit(nowMS int64, r *pb.Request) *Refusal {
	cost, sequences := Cost(r), int64(choices(r))
	if a.Limits != nil {
		a.refill(nowMS)
		cost = min(max(0, cost), MaxRate+1)
		requests, tokens := perMinute(a.Limits.GetRequestsPerMinute()), perMinute(a.Limits.GetTokensPerMinute())
		refuse := func(limit string, retryMS int64, format string, args ...any) *Refusal {
			return &Refusal{Limit: limit, Reason: fmt.Sprintf("tenant %q: ", a.Name) + fmt.Sprintf(format, args...), RetryMS: retryMS}
		}
		var wait, forTokens int64
		if requests > 0 {
			wait = untilMS(1000-a.requestsLeft, requests)
		}
		if tokens > 0 {
			forTokens = untilMS(1000*cost-a.tokensLeft, tokens)
		}
		most := int64(a.Limits.GetMaxRequests())
		switch {
		case tokens > 0 && cost > tokens:
			return refuse("tokens_per_minute", 0, "the request may take %d tokens, the limit is %d a minute", cost, tokens)
		case most > 0 && sequences > most:
			return refuse("max_requests", 0, "the request has %d sequences, the limit is %d at once", sequences, most)
		case most > 0 && a.Live+sequences > most:
			return refuse("max_requests", max(1000, wait, forTokens), "%d sequences run or wait, this request has %d more, the limit is %d", a.Live, sequences, most)
		case forTokens > wait:
			return refuse("tokens_per_minute", forTokens, "the limit is %d tokens a minute, and the request may take %d", tokens, cost)
		case wait > 0:
			return refuse("requests_per_minute", wait, "the limit is %d requests a minute", requests)
		}
		if requests > 0 {
			a.requestsLeft -= 1000
		}
		if tokens > 0 {
			a.tokensLeft -= 1000 * cost
		}
	}
	a.Live += sequences
	return nil
}

// untilMS is when so many thousandths will have come; 0 if none are missing.
func untilMS(missing, perMinute int64) int64 {
	return (max(0, missing) + perMinute - 1) / perMinute * refillStepMS
}

// Cost is what a request may take of its tenant's tokens: its prompt, and all that it may generate.
func Cost(r *pb.Request) int64 {
	return int64(len(r.GetPrompt())) + int64(choices(r))*int64(max(0, r.GetSampling().GetMaxTokens()))
}

// set changes the limits. Buckets that were limited before keep what was left; new ones begin full.
func (a *Account) set(limits *pb.Tenant, nowMS int64) {
	share := a.share()
	a.refill(nowMS)
	keep := func(left *int64, before, now int64) {
		if before <= 0 {
			*left = 1000 * perMinute(now)
		}
		*left = min(*left, 1000*perMinute(now))
	}
	keep(&a.requestsLeft, a.Limits.GetRequestsPerMinute(), limits.GetRequestsPerMinute())
	keep(&a.tokensLeft, a.Limits.GetTokensPerMinute(), limits.GetTokensPerMinute())
	a.refilledMS = max(a.refilledMS, nowMS)
	a.Limits = limits
	a.Served = min(share, MaxRate) * a.Weight()
}

// account is a tenant's working copy within the entry.
func (a *application) account(tenant string) *Account {
	if acc := a.accounts[tenant]; acc != nil {
		return acc
	}
	acc := &Account{Name: tenant, refilledMS: a.nowMS}
	if known := first[*Account](a.txn, tenantsTable, tenant); known != nil {
		*acc = *known
	}
	a.accounts[tenant] = acc
	return acc
}

// admit takes a request into its tenant's account, or says why not.
func (a *application) admit(r *pb.Request) *Refusal {
	acc := a.account(r.GetTenant())
	if acc.Live == 0 {
		raw, err := a.txn.First(tenantsTable, "share")
		must(err)
		if lowest, ok := raw.(*Account); ok {
			acc.Served = max(acc.Served, min(lowest.share(), MaxRate)*acc.Weight())
		}
	}
	return acc.admit(a.nowMS, r)
}

// served books what a tenant was given.
func (a *application) served(tenant string, tokens int64) {
	acc := a.account(tenant)
	acc.Served = min(acc.Served+tokens, maxServed)
}

// keepAccounts writes the working copies down.
func (a *application) keepAccounts() {
	for _, name := range slices.Sorted(maps.Keys(a.accounts)) {
		acc := a.accounts[name]
		if acc.Live > 0 || acc.Limits != nil {
			must(a.txn.Insert(tenantsTable, acc))
		} else if known := first[*Account](a.txn, tenantsTable, name); known != nil {
			must(a.txn.Delete(tenantsTable, known))
		}
	}
}

// limited counts the tenants with limits of their own.
func (a *application) limited() (n int) {
	it, err := a.txn.Get(tenantsTable, "limited")
	must(err)
	for raw := it.Next(); raw != nil; raw = it.Next() {
		if acc, ok := raw.(*Account); ok && a.accounts[acc.Name] == nil {
			n++
		}
	}
	for _, acc := range a.accounts {
		if acc.Limits != nil {
			n++
		}
	}
	return n
}

func (a *application) tenant(c *pb.TenantCommand) Result {
	acc := a.account(c.GetTenant().GetName())
	if c.GetRemoved() {
		changed := acc.Limits != nil
		share := acc.share()
		acc.Limits, acc.requestsLeft, acc.tokensLeft = nil, 0, 0
		acc.Served = share
		return Result{Changed: changed}
	}
	if acc.Limits == nil {
		if n := a.limited(); n >= MaxTenants {
			return Result{Refused: &Refusal{Reason: fmt.Sprintf("tenant %q: %d tenants have limits, the most is %d; remove some", acc.Name, n, MaxTenants)}}
		}
	}
	acc.set(c.GetTenant(), a.nowMS)
	return Result{Changed: true}
}

func (a *Account) toProto() *pb.TenantRecord {
	return &pb.TenantRecord{
		Name: a.Name, Tenant: a.Limits, RequestsLeft: a.requestsLeft, TokensLeft: a.tokensLeft,
		RefilledMs: a.refilledMS, Served: a.Served,
	}
}

func accountFromProto(p *pb.TenantRecord) *Account {
	left := func(thousandths, limit int64) int64 { return min(max(0, thousandths), 1000*perMinute(limit)) }
	return &Account{
		Name: p.GetName(), Limits: p.GetTenant(), refilledMS: p.GetRefilledMs(), Served: min(max(0, p.GetServed()), maxServed),
		requestsLeft: left(p.GetRequestsLeft(), p.GetTenant().GetRequestsPerMinute()),
		tokensLeft:   left(p.GetTokensLeft(), p.GetTenant().GetTokensPerMinute()),
	}
}

// Account returns the tenant's account, or nil. It must not be changed.
func (v *View) Account(tenant string) *Account {
	return first[*Account](v.db.Txn(false), tenantsTable, tenant)
}

// Accounts lists the tenants that have limits or requests, by name.
func (v *View) Accounts() iter.Seq[*Account] { return list[*Account](v.db, tenantsTable, "id") }
