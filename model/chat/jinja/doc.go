// Package jinja interprets the part of the Jinja language that chat templates are written in, as
// Hugging Face transformers sets Jinja2 up: trim_blocks and lstrip_blocks on, loop controls and
// generation blocks known, values immutable but for namespaces.
//
// It exists because a template is a program out of a stranger's file that runs on a server with the
// text of clients, and two properties are needed of the interpreter itself, which no library has:
//
//   - A budget that nothing gets past. Every evaluation takes steps, and every operation pays for the
//     bytes that it builds or looks through before it does so: concatenation, repetition, joins,
//     padding, formats and lists alike. What a rendering may cost is a number, not a hope.
//   - Provenance. A [Text] knows which of its bytes the template's author wrote and which came with
//     the data, through every operation, so that a client's text cannot spell a token that only the
//     template may write.
//
// ardanlabs/jinja v1.8 and gonja v2.9 were weighed: both work on Go strings, so that neither can carry
// provenance, and both build values in filters and methods of their own without asking anybody, so
// that a budget can be hung on loops alone. Both also needed rewriting of templates to keep Jinja's
// rules of scope and space.
//
// Invariants:
//   - Rendering ends within the limits given, whatever the template and the data.
//   - The same template and data give the same text. Objects keep the order of their keys.
//   - Unknown statements, filters and tests are errors of [Parse]; nothing is skipped in silence.
//   - Numbers are 64-bit: an integer that would overflow is an error, not another number.
//
// Inside, errors are panics of type [Error] that [Parse] and [Template.Render] turn into results. A
// panic of another kind, a fault of the interpreter, costs its template alone as well.
// It must not import anything of ours.
package jinja
