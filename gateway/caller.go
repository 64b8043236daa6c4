package gateway

import (
	"context"
	"crypto/sha256"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"
)

// What a request says outside of its body: who asks, how long it may take, and what it was before.
// Until there is authentication whoever reaches the gateway is believed: tenant and priority are for
// trusted networks.

const (
	tenantHeader   = "X-Quire-Tenant"
	deadlineHeader = "X-Request-Deadline-Ms"
	lastEvent      = "Last-Event-ID"
	// The same in gRPC's metadata; there priority has no other place.
	tenantKey   = "quire-tenant"
	deadlineKey = "quire-deadline-ms"
	priorityKey = "quire-priority"

	maxTenantBytes = 64
	// maxDeadlineMS is a day.
	maxDeadlineMS = 24 * 60 * 60 * 1000
	// The priority classes that the scheduler tells apart.
	minPriority, maxPriority = -8, 7
)

// caller is what a request says outside of its body.
type caller struct {
	id string
	// named ids come from the client, who can come back with them.
	named  bool
	tenant string
	// patience is how long the request may wait to be started; 0 is for ever.
	patience time.Duration
}

// identify settles who asks for what, and echoes x-request-id. The request's id is the client's
// Idempotency-Key, or new; x-request-id is a label for logs that two requests may share, so it never
// becomes the id.
func identify(w http.ResponseWriter, r *http.Request) (caller, *apiError) {
	c := caller{id: newID(), tenant: r.Header.Get(tenantHeader)}
	var e *apiError
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		if validID(key) {
			c.id, c.named = key, true
		} else {
			e = invalid("Idempotency-Key", "Idempotency-Key must be 1 to %d printable ASCII characters without spaces", maxIDBytes)
		}
	}
	echoLabel(w, r, c.id)
	if e == nil {
		e = checkTenant(tenantHeader, c.tenant)
	}
	if e == nil {
		c.patience, e = parsePatience(deadlineHeader, r.Header.Get(deadlineHeader))
	}
	return c, e
}

// echoLabel answers with the client's x-request-id if it is valid, else with ours.
func echoLabel(w http.ResponseWriter, r *http.Request, ours string) {
	label := r.Header.Get("X-Request-Id")
	if !validID(label) {
		label = ours
	}
	w.Header().Set("X-Request-Id", label)
}

// key is the name of a tenant's request within the cluster: two tenants' ids have nothing to do with each
// other. No two callers' keys are the same, because a tenant's name has no slash, and an id without a tenant
// that has one gets another in front.
func (c caller) key() string {
	if c.tenant == "" && !strings.Contains(c.id, "/") {
		return c.id
	}
	return c.tenant + "/" + c.id
}

// part is the name of the i-th prompt of a tenant's request: no key reads so, because keys have no spaces.
func (c caller) part(i int) string {
	if i == 0 {
		return c.key()
	}
	return c.key() + " " + strconv.Itoa(i)
}

// digestOf names what a client sent.
func digestOf(body []byte) []byte {
	sum := sha256.Sum256(body)
	return sum[:16]
}

// fromMetadata is identify for gRPC. id is the request's own name, if it has one.
func fromMetadata(ctx context.Context, id string) (c caller, priority int32, e *apiError) {
	md, _ := metadata.FromIncomingContext(ctx)
	value := func(key string) string {
		if v := md.Get(key); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	c = caller{id: id, named: id != "", tenant: value(tenantKey)}
	if id == "" {
		c.id = newID()
	} else if !validID(id) {
		return c, 0, badRequestID()
	}
	if e = checkTenant(tenantKey, c.tenant); e != nil {
		return c, 0, e
	}
	if c.patience, e = parsePatience(deadlineKey, value(deadlineKey)); e != nil {
		return c, 0, e
	}
	if text := value(priorityKey); text != "" {
		v, err := strconv.ParseInt(text, 10, 32)
		if err != nil || v < minPriority || v > maxPriority {
			return c, 0, invalid(priorityKey, "%s must be an integer between %d and %d, not %q", priorityKey, minPriority, maxPriority, clip(text, 32))
		}
		priority = int32(v)
	}
	return c, priority, nil
}

func badRequestID() *apiError {
	return invalid("request_id", "request_id must be 1 to %d printable ASCII characters without spaces", maxIDBytes)
}

// checkTenant accepts letters, digits, '-', '_' and '.'; none is allowed.
func checkTenant(param, tenant string) *apiError {
	ok := len(tenant) <= maxTenantBytes
	for i := range len(tenant) {
		c := tenant[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return invalid(param, "%s must be at most %d letters, digits, dots, hyphens and underscores", param, maxTenantBytes)
	}
	return nil
}

func parsePatience(param, text string) (time.Duration, *apiError) {
	if text == "" {
		return 0, nil
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || v < 1 || v > maxDeadlineMS {
		return 0, invalid(param, "%s must be 1 to %d milliseconds from now, not %q", param, maxDeadlineMS, clip(text, 32))
	}
	return time.Duration(v) * time.Millisecond, nil
}
