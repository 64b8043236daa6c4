// Package grammar restricts what a model may write: to a JSON object, to JSON that a schema
// allows, or to what a regular expression matches.
//
// It exists because a client that parses the answer must never meet one that does not parse, and
// because the restriction has to cost less than the forward pass beside which it runs. A grammar
// is a pushdown network over bytes (see network.go), determinised as far as the text written so
// far has needed it (automaton.go). For the state that a request is in, one walk over the
// vocabulary's trie gives the set of tokens that may follow (mask.go); the set is kept with the
// state, so that every later visit, by any request of the same grammar, is a look-up.
//
// Invariants:
//   - From every state that can be reached there is a way to the end, in tokens that the
//     vocabulary has: a request never gets stuck with nothing allowed.
//   - A mask allows a token exactly if all its bytes can follow, the first byte of a longer UTF-8
//     character included; it allows the end exactly where the text is complete; it never allows
//     another special token.
//   - A State is a function of the grammar and of the tokens accepted: replaying a token log
//     anywhere gives the same masks.
//   - Nothing that a schema says is passed over in silence: what is outside the subset that
//     docs/structured-output.md states is refused, with its place.
//   - Everything is bounded: the source's size, the network, the work of compiling, the states kept,
//     the work of one mask, the masks kept. Work is counted and not timed, and the same whether its
//     outcome was kept or not: a limit is met everywhere or nowhere, whatever else runs.
//
// It must not import the engine, the device or gRPC: it knows of no request and no batch.
package grammar
