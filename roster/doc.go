// Package roster is the set of workers that gateways attach to: the leader keeps it (Roster), gateways follow
// it (View).
//
// A pool of a thousand workers takes some 250 kB to tell, so gateways are told what has changed since what
// they know, and the whole set only where the leader does not know the difference: at first, under a new
// leader, and after longer absence than the leader remembers changes for.
//
// Invariants, which hold for any breaks of the stream and any changes of leader:
//
//   - A View that has taken in all news equals the Roster that told them.
//   - What a Roster says and does costs as much as what has changed, not as there are workers.
//   - News that do not follow what a View knows change nothing.
//
// The package is pure, and imports of ours the wire API alone.
package roster
