// Package tokenizer turns text into token ids and back, for models with a byte-level BPE vocabulary.
//
// It exists because a serving system must cut a prompt exactly as the model's trainers did: one
// wrong boundary and the model reads another text. So the patterns that split text into words
// before merging are written out by hand, one scanner for each pattern, and compared with Hugging
// Face tokenizers by golden files. A vocabulary whose pattern has no scanner is refused by name; it
// is never cut by a similar one.
//
// Invariants:
//   - A [Tokenizer] is immutable and safe for concurrent use; [Visible], [Stream] and [StopMatcher]
//     belong to one request.
//   - What a client sees of a choice, and where a stop string ends it, is what [Visible] says, for the
//     engine and the front door alike.
//   - Text that holds the spelling of a control token becomes that token only when the caller asks
//     for it, for the whole text or for parts of it: what a user types cannot end a turn.
//   - What a [Stream] returns, joined, is what [Tokenizer.Decode] returns for the same ids.
//   - Encoding never fails: each byte has its token, so text that is not UTF-8 is encoded byte by
//     byte, and a byte without a token is left out. A vocabulary without plain ASCII is refused.
//   - Work is linear in the text, up to a logarithm in the length of its longest word.
//
// It must not import gRPC, the engine or the gateway: it knows nothing of requests.
package tokenizer
