package grammar

import "fmt"

// A State is where one text stands in its grammar. It is a small value: a copy is a snapshot, to
// go back to when drafted tokens are not taken, or to go on from several times. The zero State
// belongs to no grammar and must not be used. A State is not safe for concurrent use; copies are
// independent of each other.
type State struct {
	g          *Grammar
	generation uint32
	id         int32
	accepting  bool
	ended      bool
	configs    []config
}

func (g *Grammar) at(id int32) State {
	s := &g.a.states[id]
	return State{g: g, generation: g.a.generation, id: id, accepting: s.accepting, configs: s.configs}
}

// enter makes the state's number valid. The grammar's lock is held.
func (s *State) enter() error {
	a := s.g.a
	a.allowed = a.limits.Work
	if a.full() {
		a.reset()
		s.g.masks.reset()
	}
	if s.generation == a.generation {
		return nil
	}
	id, err := a.restore(s.configs, s.accepting)
	if err != nil {
		return err
	}
	s.id, s.generation, s.configs = id, a.generation, a.states[id].configs
	return nil
}

// Mask returns the tokens that may follow, a bit each, low bits first, as device.Batch.Masks has
// them: Vocabulary().Words() words. The caller must not change it; it stays as it is. The first
// call in a state walks the vocabulary, later ones look up.
//
// The error is ErrLimit, when the text has become too ambiguous to follow within the limits. Only
// regular expressions and patterns with large counted repetitions can bring that about; the
// request cannot go on.
func (s *State) Mask() ([]uint32, error) {
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := s.enter(); err != nil {
		return nil, err
	}
	if k := g.a.states[s.id].mask; k != nil {
		g.masks.touch(k)
		return k.words, nil
	}
	words := make([]uint32, g.vocabulary.Words())
	if err := g.a.fill(words, g.vocabulary, s.id, g.path); err != nil {
		return nil, err
	}
	k := &mask{words: words, of: s.id}
	g.a.states[s.id].mask = k
	g.masks.touch(k)
	for g.masks.count > 1 && g.masks.count*4*len(words) > g.a.limits.MaskBytes {
		g.a.states[g.masks.oldest().of].mask = nil
	}
	return words, nil
}

// Accept goes on past a token. ErrRefused: the token cannot follow, and the state is as it was.
// Replaying a request's tokens from NewState leads to the same state.
func (s *State) Accept(token int32) error {
	g := s.g
	v := g.vocabulary
	if s.ended {
		return fmt.Errorf("%w: %d comes after the end", ErrRefused, token)
	}
	if v.isEnd(token) {
		if !s.accepting {
			return fmt.Errorf("%w: %d ends the text where it is not complete", ErrRefused, token)
		}
		s.ended = true
		return nil
	}
	if token < 0 || int(token) >= len(v.tokens) || v.tokens[token] == nil {
		return fmt.Errorf("%w: %d is a special token or none", ErrRefused, token)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := s.enter(); err != nil {
		return err
	}
	id := s.id
	for _, c := range v.tokens[token] {
		var err error
		if id, err = g.a.step(id, g.a.class[c]); err != nil {
			return err
		}
		if id == dead {
			return fmt.Errorf("%w: %d (%q)", ErrRefused, token, v.tokens[token])
		}
	}
	*s = g.at(id)
	return nil
}

// Accepting reports whether the text may end here.
func (s *State) Accepting() bool { return s.accepting }

// Done reports that nothing but the end can follow: the text is complete, and a caller need not
// ask the model for the token that says so.
func (s *State) Done() bool { return s.ended || s.accepting && len(s.configs) == 0 }
