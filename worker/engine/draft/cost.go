package draft

import "github.com/quire-serve/quire/worker/engine/pace"

// Costs are what drafts cost. That is measured, like what prompts cost (package pace): the time of a step
// without drafts, by its decodes, and what so many drafts add to it. Where a device waits for memory the first rows are
// free, and then each costs its price; a CPU may ask the price from the first on, or by the tile.
//
// A step with drafts is not overlapped, so what it takes counts from the end of the one before it: the
// pause between the two is a part of what drafts cost.
//
// What has not been measured is tried: first with half as many drafts as decodes, which says more than
// the noise of a single step and costs little, then with twice as many each time. What was measured long
// ago is tried again, few drafts beside many decodes the sooner: they cost little, and one measurement says
// little of them.
type Costs struct {
	plain   [pace.Buckets]pace.Measured        // a step without drafts and prompts, by pace.Bucket of its decodes
	decodes [pace.Buckets]int                  // how many it had
	extra   [pace.Buckets][sizes]pace.Measured // what drafts add to it, by bucket

	measured uint64 // steps without prompts so far: the clock of the measurements
	accepted int64  // when the newest step came back
	drafted  bool   // whether it had drafts
}

const (
	// MaxPerStep bounds the drafts of a step.
	MaxPerStep = 128
	sizes      = 14
	// costSteps is for how many steps a measurement counts, of those that can be measured.
	costSteps = 128
	// nearby is how many buckets of more decodes are looked at: two octaves.
	nearby = 8
	// growth is how many times as many drafts as the most that were measured are tried.
	growth = 2
	// sure is what a guessed token counts for beside one that is certain: costs and odds are estimates.
	sure = 0.8
)

// size is the smallest number of drafts of a bucket: 1, 2, 3, 4, 6, 8, 12 and so on.
func size(bucket int) int {
	if bucket == 0 {
		return 1
	}
	n := 1 << ((bucket + 1) / 2)
	return n + (bucket+1)%2*n/2
}

// bucket is the bucket of 1 to MaxPerStep drafts.
func bucket(drafts int) int {
	b := 0
	for b+1 < sizes && size(b+1) <= drafts {
		b++
	}
	return b
}

// Curve is what drafts are expected to add to the next step, by their number, and how many of them
// may be tried.
type Curve struct {
	decodes float64
	plain   float64 // the step without drafts
	at      [sizes]float64
	most    int
}

// recent reports whether m counts still, after costSteps or a share of them.
func (t *Costs) recent(m *pace.Measured, share float64) bool {
	return m.Step > 0 && t.measured <= m.Step+uint64(costSteps*share)
}

// Curve is what is known of steps with so many decodes; false if the step without drafts is
// to be measured first. What was measured with more decodes will do: drafts add no more beside fewer,
// and the step without takes no less than its share.
func (t *Costs) Curve(decodes int) (c Curve, ok bool) {
	own := pace.Bucket(decodes)
	for b := own; b <= min(own+nearby, len(t.plain)-1); b++ {
		if !t.recent(&t.plain[b], 1) {
			continue
		}
		plain := t.plain[b].US * min(1, float64(decodes)/float64(t.decodes[b]))
		c = Curve{decodes: float64(decodes), plain: plain, most: max(1, decodes/2)}
		if t.draw(&c, b) || b == own {
			return c, true
		}
	}
	return c, false
}

// draw puts c through the numbers of drafts that were measured in bucket b, from none on and beyond the
// largest in proportion. In between it hopes for half of what a line would give: there may be a step. It
// reports whether there are any.
func (t *Costs) draw(c *Curve, b int) bool {
	known, us, next := 0, 0.0, 0
	for i := range t.extra[b] {
		e := &t.extra[b][i]
		n := size(i)
		if !t.recent(e, min(1, 2*float64(n)/c.decodes)) {
			continue
		}
		for ; next <= i; next++ {
			c.at[next] = us + (e.US-us)*float64(size(next)-known)/float64(n-known)
			if next < i {
				c.at[next] -= (c.at[next] - us) / 2
			}
		}
		known, us = n, e.US
		c.most = max(c.most, growth*n)
	}
	for ; next < sizes && known > 0; next++ {
		c.at[next] = us * float64(size(next)) / float64(known)
	}
	return known > 0
}

// cost is what so many drafts add, in microseconds.
func (c *Curve) cost(drafts int) float64 {
	b := bucket(drafts)
	n := size(b)
	if drafts == n || b == sizes-1 {
		return c.at[b]
	}
	return c.at[b] + (c.at[b+1]-c.at[b])*float64(drafts-n)/float64(size(b+1)-n)
}

// rate is how many tokens a microsecond the step gives with so many drafts, of which right are expected
// to be right.
func (c *Curve) rate(drafts int, right float64) float64 {
	if drafts == 0 {
		return c.decodes / c.plain
	}
	return (c.decodes + sure*right) / (c.plain + c.cost(drafts))
}

// Pays reports whether drafts, at most most, could be worth their rows if all were right.
func (c *Curve) Pays(most int) bool {
	for b := 0; b < sizes && size(b) <= min(most, c.most); b++ {
		if n := size(b); c.rate(n, float64(n)) > c.rate(0, 0) {
			return true
		}
	}
	return false
}

// levels tell drafts apart by how likely they are right.
const levels = 32

func level(odds float32) int { return min(int(odds*levels), levels-1) }

// Ladder counts the drafts that a step could have by how likely they are right, and sums that up.
type Ladder [levels]struct {
	rows  int
	right float64
}

func (l *Ladder) add(odds float32) {
	r := &l[level(odds)]
	r.rows++
	r.right += float64(odds)
}

// Choice says which drafts a step has: all of the levels above last, and rest of those of last.
type Choice struct{ last, rest int }

// Take reports whether a draft that is right with these odds is among them, and counts it if so.
func (c *Choice) Take(odds float32) bool {
	switch l := level(odds); {
	case l > c.last:
		return true
	case l < c.last || c.rest == 0:
		return false
	}
	c.rest--
	return true
}

// Choose says which drafts, the likeliest first and at most most, give the most tokens in the least time.
func (c *Curve) Choose(l *Ladder, most int) (choice Choice) {
	best := c.rate(0, 0)
	choice.last = levels
	rows, right := 0, 0.0
	for level := levels - 1; level >= 0; level-- {
		each := l[level].right / float64(max(l[level].rows, 1))
		for i := 1; i <= l[level].rows && rows < min(most, c.most); i++ {
			rows++
			right += each
			if r := c.rate(rows, right); r > best {
				best, choice = r, Choice{level, i}
			}
		}
	}
	return choice
}

// Measure learns from a step of so many sequences that decode, rows of prompts and drafts, which is back
// at now, in microseconds.
func (t *Costs) Measure(decodes, prompts, drafts int, now int64) {
	took := float64(now - t.accepted)
	if decodes > 0 && prompts == 0 {
		t.measured++
		b := pace.Bucket(decodes)
		plain := &t.plain[b]
		switch {
		case drafts > 0 && t.recent(plain, 1):
			i := bucket(drafts)
			extra := &t.extra[b]
			add := took - plain.US
			if e := &extra[i]; e.Step > 0 {
				add = min(add, e.US+plain.US/2) // one hiccup of the machine says little
			}
			add = max(add, 0) * float64(size(i)) / float64(drafts)
			extra[i].Add(add, t.measured)
			// More drafts never take less.
			for j := range extra {
				if j < i {
					extra[j].US = min(extra[j].US, extra[i].US)
				} else {
					extra[j].US = max(extra[j].US, extra[i].US)
				}
			}
		case drafts == 0 && !t.drafted:
			if plain.Step > 0 {
				took = min(took, 1.5*plain.US)
			}
			plain.Add(took, t.measured)
			t.decodes[b] = decodes
		}
	}
	t.accepted, t.drafted = now, drafts > 0
}

// Suppose takes it that a step takes plain microseconds and drafts, however many, add nothing, until more
// is measured: for who knows better than to measure, as tests do.
func (t *Costs) Suppose(plain float64) {
	for b := range t.plain {
		t.plain[b], t.decodes[b] = pace.Measured{US: plain, Step: t.measured + 1}, 1
		for i := range t.extra[b] {
			t.extra[b][i] = pace.Measured{Step: t.measured + 1}
		}
	}
}
