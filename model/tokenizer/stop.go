package tokenizer

// StopMatcher finds the end of a text that stop strings cut short, while the text comes in pieces.
// It runs one Knuth-Morris-Pratt automaton for each stop string, so each byte costs the same however
// the text is cut, and it holds back no more than the longest stop string; nothing if that is part of the text.
type StopMatcher struct {
	stops []stop
	held  []byte // the end of the text so far that may begin a stop string
	keep  bool   // a stop string is part of the text that it ends
	done  bool
	which int
}

type stop struct {
	text  string
	index int     // among the strings that the caller gave
	fail  []int32 // fail[n]: how much of the text still matches after a mismatch at n
	n     int     // how much of text the end of the input matches
}

// NewStopMatcher returns a matcher for stops. Empty strings are ignored; without any stop string
// text passes through. With keep a stop string is part of the text that it ends.
func NewStopMatcher(stops []string, keep bool) *StopMatcher {
	m := &StopMatcher{which: -1, keep: keep}
	for i, text := range stops {
		if text == "" {
			continue
		}
		fail := make([]int32, len(text)+1)
		for i, k := 1, int32(0); i < len(text); i++ {
			for k > 0 && text[i] != text[k] {
				k = fail[k]
			}
			if text[i] == text[k] {
				k++
			}
			fail[i+1] = k
		}
		m.stops = append(m.stops, stop{text: text, index: i, fail: fail})
	}
	return m
}

// Push takes the next piece of the text. emit is text that certainly is part of it.
// stopped says that a stop string is complete: the first to be completed, the longest of several
// that end together; which is its index. From then on nothing is emitted. A stop string that is
// completed by a piece that does not count is text like any other.
func (m *StopMatcher) Push(text string, counts bool) (emit string, stopped bool, which int) {
	if m.done {
		return "", true, m.which
	}
	if len(m.stops) == 0 {
		return text, false, -1
	}
	for i := range len(text) {
		m.held = append(m.held, text[i])
		longest := 0
		for j := range m.stops {
			if s := &m.stops[j]; s.step(text[i]) && counts && len(s.text) > longest {
				longest, m.which, m.done = len(s.text), s.index, true
			}
		}
		if m.done {
			if m.keep {
				longest = 0
			}
			emit = string(m.held[:len(m.held)-longest])
			m.held = nil
			return emit, true, m.which
		}
	}
	hold := 0
	for j := range m.stops {
		if !m.keep {
			hold = max(hold, m.stops[j].n)
		}
	}
	cut := len(m.held) - hold
	emit = string(m.held[:cut])
	m.held = append(m.held[:0], m.held[cut:]...)
	return emit, false, -1
}

// Flush ends the text and returns what was held back.
func (m *StopMatcher) Flush() string {
	emit := string(m.held)
	m.held = nil
	return emit
}

// step feeds one byte and reports whether the stop string is complete.
func (s *stop) step(b byte) bool {
	for s.n > 0 && s.text[s.n] != b {
		s.n = int(s.fail[s.n])
	}
	if s.text[s.n] == b {
		s.n++
	}
	if s.n < len(s.text) {
		return false
	}
	s.n = int(s.fail[s.n])
	return true
}
