package engine

// What drafts cost is measured, like what prompts cost (pace.go): the time of a step without drafts,
// by its decodes, and what so many drafts add to it. Where a device waits for memory the first rows are
// free, and then each costs its price; a CPU may ask the price from the first on, or by the tile.
//
// A step with drafts is not overlapped, so what it takes counts from the end of the one before it: the
// pause between the two is a part of what drafts cost.
//
// What has not been measured is tried: first with half as many drafts as decodes, which says more than
// the noise of a single step and costs little, then with twice as many each time. What was measured long
// ago is tried again, few drafts beside many decodes the sooner: they cost little, and one measurement says
// little of them.
type draftCosts struct {
	plain   [64]measured             // a step without drafts and prompts, by paceBucket of its decodes
	decodes [64]int                  // how many it had
	extra   [64][draftSizes]measured // what drafts add to it, by draftBucket

	measured uint64 // steps without prompts so far: the clock of the measurements
	accepted int64  // when the newest step came back
	drafted  bool   // whether it had drafts
}

const (
	// maxDraftRows bounds the drafts of a step.
	maxDraftRows = 128
	draftSizes   = 14
	// costSteps is for how many steps a measurement counts, of those that can be measured.
	costSteps = 128
	// nearby is how many buckets of more decodes are looked at: two octaves.
	nearby = 8
	// growth is how many times as many drafts as the most that were measured are tried.
	growth = 2
	// sure is what a guessed token counts for beside one that is certain: costs and odds are estimates.
	sure = 0.8
)

// draftSize is the smallest number of drafts of a bucket: 1, 2, 3, 4, 6, 8, 12 and so on.
func draftSize(bucket int) int {
	if bucket == 0 {
		return 1
	}
	n := 1 << ((bucket + 1) / 2)
	return n + (bucket+1)%2*n/2
}

// draftBucket is the bucket of 1 to maxDraftRows drafts.
func draftBucket(drafts int) int {
	b := 0
	for b+1 < draftSizes && draftSize(b+1) <= drafts {
		b++
	}
	return b
}

// draftCurve is what drafts are expected to add to the next step, by their number, and how many of them
// may be tried.
type draftCurve struct {
	decodes float64
	plain   float64 // the step without drafts
	at      [draftSizes]float64
	most    int
}

// recent reports whether m counts still, after costSteps or a share of them.
func (t *draftCosts) recent(m *measured, share float64) bool {
	return m.step > 0 && t.measured <= m.step+uint64(costSteps*share)
}

// curve is what is known of steps with so many decodes; false if the step without drafts is
// to be measured first. What was measured with more decodes will do: drafts add no more beside fewer,
// and the step without takes no less than its share.
func (t *draftCosts) curve(decodes int) (c draftCurve, ok bool) {
	own := paceBucket(decodes)
	for b := own; b <= min(own+nearby, len(t.plain)-1); b++ {
		if !t.recent(&t.plain[b], 1) {
			continue
		}
		plain := t.plain[b].us * min(1, float64(decodes)/float64(t.decodes[b]))
		c = draftCurve{decodes: float64(decodes), plain: plain, most: max(1, decodes/2)}
		if t.draw(&c, b) || b == own {
			return c, true
		}
	}
	return c, false
}

// draw puts c through the numbers of drafts that were measured in bucket b, from none on and beyond the
// largest in proportion. In between it hopes for half of what a line would give: there may be a step. It
// reports whether there are any.
func (t *draftCosts) draw(c *draftCurve, b int) bool {
	known, us, next := 0, 0.0, 0
	for i := range t.extra[b] {
		e := &t.extra[b][i]
		n := draftSize(i)
		if !t.recent(e, min(1, 2*float64(n)/c.decodes)) {
			continue
		}
		for ; next <= i; next++ {
			c.at[next] = us + (e.us-us)*float64(draftSize(next)-known)/float64(n-known)
			if next < i {
				c.at[next] -= (c.at[next] - us) / 2
			}
		}
		known, us = n, e.us
		c.most = max(c.most, growth*n)
	}
	for ; next < draftSizes && known > 0; next++ {
		c.at[next] = us * float64(draftSize(next)) / float64(known)
	}
	return known > 0
}

// cost is what so many drafts add, in microseconds.
func (c *draftCurve) cost(drafts int) float64 {
	b := draftBucket(drafts)
	n := draftSize(b)
	if drafts == n || b == draftSizes-1 {
		return c.at[b]
	}
	return c.at[b] + (c.at[b+1]-c.at[b])*float64(drafts-n)/float64(draftSize(b+1)-n)
}

// rate is how many tokens a microsecond the step gives with so many drafts, of which right are expected
// to be right.
func (c *draftCurve) rate(drafts int, right float64) float64 {
	if drafts == 0 {
		return c.decodes / c.plain
	}
	return (c.decodes + sure*right) / (c.plain + c.cost(drafts))
}

// pays reports whether drafts, at most most, could be worth their rows if all were right.
func (c *draftCurve) pays(most int) bool {
	for b := 0; b < draftSizes && draftSize(b) <= min(most, c.most); b++ {
		if n := draftSize(b); c.rate(n, float64(n)) > c.rate(0, 0) {
			return true
		}
	}
	return false
}

// oddsLevels tell drafts apart by how likely they are right.
const oddsLevels = 32

func oddsLevel(odds float32) int { return min(int(odds*oddsLevels), oddsLevels-1) }

// ladder counts the drafts that a step could have by how likely they are right, and sums that up.
type ladder [oddsLevels]struct {
	rows  int
	right float64
}

func (l *ladder) add(odds float32) {
	r := &l[oddsLevel(odds)]
	r.rows++
	r.right += float64(odds)
}

// choose returns how many drafts, the likeliest first and at most most, give the most tokens in the least
// time: all of the levels above last, and rest of those of last.
func (c *draftCurve) choose(l *ladder, most int) (last, rest int) {
	best := c.rate(0, 0)
	last = oddsLevels
	rows, right := 0, 0.0
	for level := oddsLevels - 1; level >= 0; level-- {
		each := l[level].right / float64(max(l[level].rows, 1))
		for i := 1; i <= l[level].rows && rows < min(most, c.most); i++ {
			rows++
			right += each
			if r := c.rate(rows, right); r > best {
				best, last, rest = r, level, i
			}
		}
	}
	return last, rest
}

// measureDrafts learns from what the step took, now that it is back.
func (p *planner) measureDrafts(st *step, now int64) {
	if p.Speculate == 0 {
		return
	}
	t := &p.drafts
	took := float64(now - t.accepted)
	if st.decodes > 0 && st.prompts == 0 {
		t.measured++
		b := paceBucket(st.decodes)
		plain := &t.plain[b]
		switch {
		case st.drafts > 0 && t.recent(plain, 1):
			i := draftBucket(st.drafts)
			sizes := &t.extra[b]
			add := took - plain.us
			if e := &sizes[i]; e.step > 0 {
				add = min(add, e.us+plain.us/2) // one hiccup of the machine says little
			}
			add = max(add, 0) * float64(draftSize(i)) / float64(st.drafts)
			sizes[i].add(add, t.measured)
			// More drafts never take less.
			for j := range sizes {
				if j < i {
					sizes[j].us = min(sizes[j].us, sizes[i].us)
				} else {
					sizes[j].us = max(sizes[j].us, sizes[i].us)
				}
			}
		case st.drafts == 0 && !t.drafted:
			if plain.step > 0 {
				took = min(took, 1.5*plain.us)
			}
			plain.add(took, t.measured)
			t.decodes[b] = st.decodes
		}
	}
	t.accepted, t.drafted = now, st.drafts > 0
}
