// Package chat renders conversations with the chat template that a model brings along.
//
// A template is a Jinja program inside the model's file. It decides which control tokens a turn is
// wrapped in, so it must come out byte for byte as the model's trainers rendered it: golden files
// made with the real Jinja2 say whether it does. The language is interpreted by ardanlabs/jinja.
// This package adds the environment that Hugging Face gives templates, an injected clock, limits, and
// Jinja's rules for space between tags and for variables set in loops, which the interpreter takes
// too lightly: a template is rewritten so that no such rule is left to apply.
//
// Invariants:
//   - Messages and the keys of objects keep the order in which they came.
//   - Rendering is a function of the messages, the options and the clock.
//   - Rendering ends: loops, calls, nesting, output and time are bounded, and a template that makes
//     the interpreter panic gives an error. What is not bounded is one expression: a file could still
//     ask for a very long string.
//
// It must not import gRPC, the tokenizer, the engine or the gateway.
package chat
