// Package draft guesses the tokens that a sequence generates next, and says how many guesses (drafts) a step
// should verify.
//
//   - A [Lookup] finds, by prompt lookup, what followed where a sequence's newest tokens stood before, and
//     knows from the tokens that came how likely such a guess is right.
//
//   - [Costs] knows what drafts add to a step, as measured, and chooses those that give the most tokens in
//     the least time.
//
// Which drafts a step has decides how tokens share steps and never which tokens come: the engine verifies
// each.
//
// It imports nothing of ours but worker/engine/pace, whose measurements it shares, and reads no clock.
package draft
