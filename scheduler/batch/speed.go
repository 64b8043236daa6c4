package batch

const (
	// speedTokensPerS is assumed of a worker until it was seen busy.
	speedTokensPerS = 8000
	// speedWindowMS is the least time over which a speed is measured.
	speedWindowMS = 1000
)

// speed is how many prompt tokens a worker computes a second, measured between heartbeats over times
// in which it had prompts to compute throughout.
type speed struct {
	// perS is a moving average; 0 before the first measurement.
	perS int64
	// The open window: since when, and the tokens computed.
	busy    bool
	sinceMS int64
	done    int64
}

func (s *speed) tokensPerS() int64 {
	if s.perS == 0 {
		return speedTokensPerS
	}
	return s.perS
}

// measure takes in a heartbeat that is about to replace the newest one: what was pending and what
// came since, less what is pending now, has been computed.
func (m *member) measure(load Load, nowMS int64) {
	s := &m.speed
	if !s.busy || load.PendingPrefill == 0 {
		*s = speed{perS: s.perS, busy: load.PendingPrefill > 0, sinceMS: nowMS}
		return
	}
	s.done += m.load.PendingPrefill - load.PendingPrefill
	for _, c := range m.charges {
		if c.index <= load.DispatchIndex {
			s.done += c.tokens
		}
	}
	age := nowMS - s.sinceMS
	if age < speedWindowMS {
		return
	}
	if sample := s.done * 1000 / age; sample > 0 {
		if s.perS == 0 {
			s.perS = sample
		}
		s.perS = max(1, (15*s.perS+sample)/16)
	}
	s.sinceMS, s.done = nowMS, 0
}
