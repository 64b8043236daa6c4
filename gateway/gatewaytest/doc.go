// Package gatewaytest is a cluster for gateways to talk to in tests: a leader and workers that speak
// the real wire API over in-memory connections and generate tokens by a rule that a test can predict.
//
// It exists so that everything a gateway does can be tested, failures included, without a model, a
// device or a Raft log. It keeps the contract of leader and worker (idempotent Submit, checkpoints,
// recall and adoption, output kept until the request ends, resuming at a position, one terminal event,
// blocks freed at the end) and none of their policy: every request runs at once. It imports of ours only proto and the tokenizer.
package gatewaytest
