package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Role is what a process is in a cluster.
type Role string

const (
	// Node is a control-plane node, with the gateway in it.
	Node Role = "node"
	// Gateway is a gateway in a process of its own.
	Gateway Role = "gateway"
	// Worker runs a model.
	Worker Role = "worker"
	// Operator looks after the cluster; also a person's command line.
	Operator Role = "operator"
)

// Roles lists all roles.
func Roles() []Role { return []Role{Node, Gateway, Worker, Operator} }

// Identity is who a certificate is of. The name is the id that the process has in the cluster.
type Identity struct {
	Role Role
	Name string
}

const (
	scheme = "quire"
	realm  = "cluster"
	// maxNameBytes is what ids in a cluster may have.
	maxNameBytes = 128
)

// ErrNoIdentity means that a certificate does not say who its owner is in a cluster.
var ErrNoIdentity = errors.New("the certificate names no role: it needs one URI quire://cluster/ROLE/NAME among its alternative names")

// ParseIdentity reads ROLE/NAME.
func ParseIdentity(text string) (Identity, error) {
	role, name, _ := strings.Cut(text, "/")
	id := Identity{Role(role), name}
	return id, id.validate()
}

func (id Identity) validate() error {
	known := false
	for _, r := range Roles() {
		known = known || r == id.Role
	}
	if !known {
		return fmt.Errorf("%q is not a role: node, gateway, worker or operator", id.Role)
	}
	if id.Name == "" || len(id.Name) > maxNameBytes {
		return fmt.Errorf("the name of a %s has %d bytes; it must have 1 to %d", id.Role, len(id.Name), maxNameBytes)
	}
	return nil
}

// String is ROLE/NAME.
func (id Identity) String() string { return string(id.Role) + "/" + id.Name }

// URI is the alternative name that a certificate of id carries.
func (id Identity) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: realm, Path: "/" + id.String(), RawPath: "/" + string(id.Role) + "/" + url.PathEscape(id.Name)}
}

// Of says who a verified certificate is of.
func Of(cert *x509.Certificate) (Identity, error) {
	var found []*url.URL
	for _, u := range cert.URIs {
		if u.Scheme == scheme {
			found = append(found, u)
		}
	}
	if len(found) != 1 || found[0].Host != realm {
		return Identity{}, ErrNoIdentity
	}
	id, err := ParseIdentity(strings.TrimPrefix(found[0].Path, "/"))
	if err != nil {
		return Identity{}, fmt.Errorf("the certificate names %s: %w", found[0], err)
	}
	return id, nil
}
