// Package pace decides how many prompt tokens a step computes beside its decodes. The engine tells it what
// each step held and when it came back; it knows no sequence, no block and no clock.
//
// Streams keep their pace beside prompts. A step that also computes prompt tokens takes longer than
// one that only decodes, and every stream waits for it. So a step with decodes carries only as many
// prompt tokens as there is device time for:
//
//   - For each decoding step, prompts may take (1-share)/share of what the step takes without them, so
//     that the streams keep Settings.DecodeShare of the rate that they have alone. Where more requests
//     wait for their first token than stream, prompts may take more: one that waits counts as much as
//     one that streams.
//
//   - Each request brings a credit, within which its prompt is computed at once: short prompts are not
//     held up to protect streams from a pause that nobody sees. A long one pays it back.
//
//   - However many short prompts come with their credits, each prompt gets an equal part of a step's prompt
//     tokens at least, so that a long one is done in about the time that an equal share of the device takes.
//
// Time is measured, not assumed: what a step of so many decodes takes, from those without prompts, and
// what so many prompt tokens add, from those with. What a step took beyond its allowance is owed by the
// next ones, so that the share holds whatever the device's costs look like.
//
// How many prompt tokens go into a step is up to what they cost there. On a device that waits for
// memory the first are free and then each costs the same; deep in a long prompt each chunk reads all
// that comes before it, and few large chunks are cheaper than many small ones; on a CPU all are alike.
// So the size is sought that adds the least time a token, the smallest of about equals, and steps
// without prompts save the time up for it, within a bound on the pause.
//
// Only how prompts are cut into steps depends on it, and that changes no token.
//
// It imports nothing of ours: what a step may hold is a function of times and counts alone.
package pace
