//go:build linux

package chaos

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run shows.
type report struct {
	seed     uint64
	model    string
	duration time.Duration
	records  []*record
	strikes  []*strike
	without  []string
	notes    []string
}

// spread is the distribution of some times.
type spread []time.Duration

// at is the time that a share of all does not exceed; 0 of none.
func (s spread) at(share float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	slices.Sort(s)
	return s[min(len(s)-1, int(share*float64(len(s))))]
}

func (s spread) String() string {
	if len(s) == 0 {
		return "-\t-\t-"
	}
	return fmt.Sprintf("%s\t%s\t%s", brief(s.at(0.5)), brief(s.at(0.99)), brief(s.at(1)))
}

func brief(d time.Duration) string {
	switch {
	case d == 0:
		return fmt.Sprintf("<%d ms", leastGap.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	default:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
}

// row is one kind of fault.
type row struct {
	faults int
	// Each stream that ran when a fault came, with its longest gap until the next one: kept are those
	// whose client stayed where it was, broken those whose client had to reconnect.
	kept, broken      spread
	elected, admitted spread
}

// gaps assigns each stream's gaps to the fault that they contain, else to the one before them.
func (r *report) gaps() map[string]*row {
	rows := map[string]*row{}
	for i, s := range r.strikes {
		w := rows[s.kind]
		if w == nil {
			w = &row{}
			rows[s.kind] = w
		}
		w.faults++
		if s.elected > 0 {
			w.elected = append(w.elected, s.elected)
		}
		if s.admitted > 0 {
			w.admitted = append(w.admitted, s.admitted)
		}
		until := time.Now()
		if i+1 < len(r.strikes) {
			until = r.strikes[i+1].at
		}
		for _, q := range r.records {
			if q.first.IsZero() || q.first.After(s.at) || q.end.Before(s.at) {
				continue // It did not stream then.
			}
			longest, again := time.Duration(0), false
			for _, g := range q.gaps {
				first := slices.IndexFunc(r.strikes, func(o *strike) bool { return !o.at.Before(g.from) })
				mine := first == i && !g.to.Before(s.at) || !g.from.Before(s.at) && g.from.Before(until) && (first < 0 || g.to.Before(r.strikes[first].at))
				if !mine {
					continue
				}
				longest = max(longest, g.to.Sub(g.from))
				again = again || slices.ContainsFunc(q.attempts, func(at time.Time) bool { return at.After(g.from) && at.Before(g.to) })
			}
			if again {
				w.broken = append(w.broken, longest)
			} else {
				w.kept = append(w.kept, longest)
			}
		}
	}
	quiet := &row{}
	for _, q := range r.records {
		if q.first.IsZero() || slices.ContainsFunc(r.strikes, func(s *strike) bool { return s.at.After(q.begin) && s.at.Before(q.end) }) {
			continue
		}
		longest := time.Duration(0)
		for _, g := range q.gaps {
			longest = max(longest, g.to.Sub(g.from))
		}
		quiet.kept = append(quiet.kept, longest)
	}
	rows[" none while it ran"] = quiet
	return rows
}

// print writes the table, and says whether the promise was kept.
func (r *report) print(out io.Writer) (kept bool) {
	var total difference
	failed, reconnected := 0, 0
	for _, q := range r.records {
		total.add(q.diff)
		if q.failure != "" {
			failed++
		}
		if len(q.attempts) > 1 {
			reconnected++
		}
		if q.failure == "" && q.diff.none() {
			continue
		}
		fmt.Fprintf(out, "\n%s %s, %s to %s: %+v %s\n", q.id, q.ask, q.begin.Format(time.StampMilli), q.end.Format(time.StampMilli), q.diff, q.failure)
		for _, n := range q.notes {
			fmt.Fprintln(out, "   ", n)
		}
	}
	fmt.Fprintf(out, "\nmodel %s, %d control-plane nodes, %d workers, %v, seed %d\n\n", r.model, controlNodes, workerNodes, r.duration.Round(time.Second), r.seed)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\t\tgap of streams that stayed\t\t\t\tof those that reconnected\t\t\t\tnew leader\t\tadmission back")
	fmt.Fprintln(w, "fault\ttimes\tstreams\tp50\tp99\tmax\tstreams\tp50\tp99\tmax\tp50\tmax\tp50\tmax")
	rows := r.gaps()
	var order []string
	for kind := range rows {
		order = append(order, kind)
	}
	slices.Sort(order)
	for _, kind := range order {
		row := rows[kind]
		pair := func(s spread) string {
			if len(s) == 0 {
				return "-\t-"
			}
			return brief(s.at(0.5)) + "\t" + brief(s.at(1))
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%v\t%d\t%v\t%s\t%s\n", strings.TrimSpace(kind), row.faults, len(row.kept), row.kept, len(row.broken), row.broken, pair(row.elected), pair(row.admitted))
	}
	w.Flush()
	fmt.Fprintf(out, "\nrequests %d, failed %d, tokens lost %d, duplicated %d, changed %d; %d requests had to be sent again or resumed\n",
		len(r.records), failed, total.lost, total.duplicated, total.changed, reconnected)
	r.longest(out)
	for _, s := range r.without {
		fmt.Fprintln(out, "left out:", s)
	}
	for _, s := range r.notes {
		fmt.Fprintln(out, s)
	}
	return failed == 0 && total.none()
}

// longest lists the longest gaps with what happened in them, for whoever wants them shorter.
func (r *report) longest(out io.Writer) {
	type long struct {
		gap
		of *record
	}
	var all []long
	for _, q := range r.records {
		for _, g := range q.gaps {
			all = append(all, long{g, q})
		}
	}
	slices.SortFunc(all, func(a, b long) int { return int(b.to.Sub(b.from) - a.to.Sub(a.from)) })
	fmt.Fprintln(out, "\nlongest gaps:")
	for _, g := range all[:min(len(all), 20)] {
		fmt.Fprintf(out, "  %s from %s in %s, %s", brief(g.to.Sub(g.from)), g.from.Format("15:04:05.000"), g.of.id, g.of.ask)
		for i, s := range r.strikes {
			next := g.to
			if i+1 < len(r.strikes) {
				next = r.strikes[i+1].at
			}
			if s.at.Before(g.to) && !next.Before(g.from) {
				fmt.Fprintf(out, "; %s: %s at %s", s.kind, s.target, s.at.Format("15:04:05.000"))
			}
		}
		fmt.Fprintln(out)
		for _, n := range g.of.notes {
			fmt.Fprintln(out, "     ", n)
		}
	}
}
