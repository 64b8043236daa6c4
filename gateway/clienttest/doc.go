// Package clienttest says what must hold when official OpenAI clients talk to a Quire gateway, as
// functions that any test can run against any base URL: the gateway's own over a fake cluster, and
// the whole system's over a real model. It knows the server by its URL alone and imports nothing of
// ours.
package clienttest
