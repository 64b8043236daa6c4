// Package chat renders conversations with the chat template that a model brings along.
//
// A template is a Jinja program inside the model's file. It decides which control tokens a turn is
// wrapped in, so it must come out byte for byte as the model's trainers rendered it: golden files
// made with the real Jinja2 say whether it does. And it is a stranger's program that is fed with
// clients' text, so what it may cost is bounded, and its prompt says which bytes the template's author
// wrote: only these may become control tokens. Package jinja, which interprets it, sees to both.
//
// Invariants:
//   - Messages and the keys of objects keep the order in which they came.
//   - Rendering is a function of the messages, the options and the clock.
//   - Rendering ends: the steps that it takes and the bytes that it builds are bounded in proportion
//     to the messages, whatever the template does.
//   - No byte of a message counts as the template's own, however the template moves it.
//
// It must not import gRPC, the tokenizer, the engine or the gateway.
package chat
