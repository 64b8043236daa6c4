package transport

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Fault is why a call to an address failed, in words for who chose the address.
type Fault struct {
	Address, Reason string
	// Mistake says that waiting will not help: the address or the certificates are not the right ones.
	Mistake bool
	err     error
}

func (f *Fault) Error() string              { return f.Address + ": " + f.Reason }
func (f *Fault) Unwrap() error              { return f.err }
func (f *Fault) GRPCStatus() *status.Status { return status.Convert(f.err) }

// IsMistake says whether an error is a fault that waiting does not mend.
func IsMistake(err error) bool {
	var f *Fault
	return errors.As(err, &f) && f.Mistake
}

// causes are what gRPC says when a connection fails, in its words, and what that means. It gives no types;
// a test makes each of them happen.
var causes = []struct {
	words   string
	mistake bool
	reason  string
}{
	{"looked like an HTTP/1.1 header", true, "an HTTP server answers there, not gRPC; the port of the HTTP API (--http) is another one"},
	{"first record does not look like a TLS handshake", true, "it answers without TLS; give no --tls-cert, --tls-key and --tls-ca, or the address of a port that has it"},
	{"certificate required", true, "it wants a certificate of the cluster: --tls-cert, --tls-key and --tls-ca"},
	{"unknown certificate authority", true, "it does not know the CA of the certificate that --tls-cert names"},
	{"signed by unknown authority", true, "its certificate is not of the CA that --tls-ca names"},
	{"expired certificate", true, "it finds the certificate that --tls-cert names expired"},
	{"has expired or is not yet valid", true, "its certificate has expired, or is not valid yet by this machine's clock"},
	{"certificate is valid for", true, "its certificate is for another host"},
	{"doesn't contain any IP SANs", true, "its certificate is for another host"},
	{"is not valid for any names", true, "its certificate is for another host"},
	{"somebody else answers", true, "somebody else answers there"},
	{"the certificate names no role", true, "its certificate names no role in a cluster"},
	{"bad certificate", true, "it refuses the certificate that --tls-cert names"},
	{"connection refused", false, "nothing listens there"},
	{"no such host", false, "the host's name is not known"},
	{"produced zero addresses", false, "the host's name is not known"},
	{"no route to host", false, "there is no route to the host"},
	{"network is unreachable", false, "there is no route to the host"},
	{"error reading server preface", false, "it closes the connection at once; does it want TLS (--tls-cert, --tls-key and --tls-ca)?"},
	{"i/o timeout", false, "nobody answers"},
	{"broken pipe", false, "it closed the connection"},
	{"connection reset by peer", false, "it closed the connection"},
	{"error reading from server", false, "it closed the connection"},
}

// Explain says why a call to an address failed. What the other side answered stays as it is.
func Explain(address string, err error) error {
	s := status.Convert(err)
	fault := &Fault{Address: address, Reason: s.Message(), err: err}
	switch s.Code() {
	case codes.OK:
		return nil
	case codes.Unavailable:
		for _, c := range causes {
			if strings.Contains(s.Message(), c.words) {
				fault.Reason, fault.Mistake = c.reason, c.mistake
				if c.mistake {
					fault.Reason += detail(s.Message())
				}
				break
			}
		}
	case codes.Unimplemented:
		if service, ok := strings.CutPrefix(s.Message(), "unknown service "); ok {
			return notServed(address, service, err)
		}
	case codes.DeadlineExceeded:
		if strings.HasPrefix(s.Message(), "context deadline exceeded") || strings.Contains(s.Message(), "while waiting for connections to become ready") {
			fault.Reason = "nobody answers in time"
		}
	case codes.PermissionDenied, codes.Unauthenticated:
		fault.Mistake = true
	}
	return fault
}

// NotServed is the fault of an address where another port of Quire answers than the one that serves.
func NotServed(address, service string) error {
	return notServed(address, service, status.Error(codes.Unimplemented, "unknown service "+service))
}

func notServed(address, service string, err error) *Fault {
	return &Fault{
		Address: address, Mistake: true, err: err,
		Reason: fmt.Sprintf("that port does not serve %s; the cluster's port (--cluster, 8004) and that for clients (--grpc, 8001) are two", service),
	}
}

// detail is the part of gRPC's message after its own layers, if it is about certificates.
func detail(message string) string {
	for _, mark := range []string{"x509: ", "somebody else answers: "} {
		if _, after, ok := strings.Cut(message, mark); ok {
			return " (" + strings.TrimSuffix(after, `"`) + ")"
		}
	}
	return ""
}
