// Package rpc is what the services of a control-plane node have in common: how they say what is wrong with a
// request, when trying again makes sense, and how long a name may be.
//
// It knows no service and no table, so that each service can be a package of its own. The package must not
// import anything of ours.
package rpc
