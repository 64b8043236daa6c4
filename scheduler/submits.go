package scheduler

import "slices"

// submits are the requests that wait for their first log entry, in a line for each tenant. The lines are
// served in turn, so that neither a burst of one tenant's nor its large requests hold the others up.
type submits struct {
	// lines are in turn: the next to be served first.
	lines []*line
	// len, sequences and bytes sum up what waits.
	len, sequences int
	bytes          int64
}

type line struct {
	tenant  string
	waiting []*live
}

func (s *submits) count(r *live, sign int) {
	s.len += sign
	s.sequences += sign * r.choices()
	s.bytes += int64(sign * r.bytes)
}

func (s *submits) push(r *live) {
	s.count(r, 1)
	tenant := r.request.GetTenant()
	at := slices.IndexFunc(s.lines, func(l *line) bool { return l.tenant == tenant })
	if at < 0 {
		at = len(s.lines)
		s.lines = append(s.lines, &line{tenant: tenant})
	}
	s.lines[at].waiting = append(s.lines[at].waiting, r)
}

// remove takes out a request that waits.
func (s *submits) remove(r *live) {
	at := slices.IndexFunc(s.lines, func(l *line) bool { return l.tenant == r.request.GetTenant() })
	l := s.lines[at]
	l.waiting = slices.DeleteFunc(l.waiting, func(x *live) bool { return x == r })
	if len(l.waiting) == 0 {
		s.lines = slices.Delete(s.lines, at, at+1)
	}
	s.count(r, -1)
}

// offered says what became of a request that was offered to an entry.
type offered uint8

const (
	taken offered = iota + 1
	// later lets those behind it in its line go first: it waits for something else than room.
	later
	// noRoom lets its line wait for the next entry, in which it is the first.
	noRoom
)

// serve offers the requests, one of each line in turn.
func (s *submits) serve(offer func(*live) offered) {
	type turn struct {
		*line
		at   int
		done bool
	}
	turns := make([]turn, len(s.lines))
	for n, l := range s.lines {
		turns[n].line = l
	}
	first := -1 // The line that found the entry full first.
	for open := len(turns); open > 0; {
		for n := range turns {
			t := &turns[n]
			if t.done {
				continue
			}
			if t.at == len(t.waiting) {
				t.done = true
				open--
				continue
			}
			switch r := t.waiting[t.at]; offer(r) {
			case taken:
				s.count(r, -1)
				t.waiting = slices.Delete(t.waiting, t.at, t.at+1)
			case later:
				t.at++
			case noRoom:
				t.done = true
				open--
				if first < 0 {
					first = n
				}
			}
		}
	}
	if first > 0 {
		s.lines = slices.Concat(s.lines[first:], s.lines[:first])
	}
	s.lines = slices.DeleteFunc(s.lines, func(l *line) bool { return len(l.waiting) == 0 })
}
