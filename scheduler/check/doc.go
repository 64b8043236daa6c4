// Package check is what may be said to the control plane: by clients' gateways of their requests, by workers of
// what they do, by operators of whom they mean.
//
// Each function looks at one message alone and names the field and its limit. What depends on the state, such as
// whether a request is known or a worker's own, is decided by whoever has the state. Everybody on the other side
// is another program on another machine, so nothing is made of a message before it has been here.
//
// The package must not import anything that holds state or does something.
package check
