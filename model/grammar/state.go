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

// Grammar is the one that the text stands in.
func (s *State) Grammar() *Grammar { return s.g }

func (g *Grammar) at(id int32) State {
	s := &g.a.states[id]
	return State{g: g, generation: g.a.generation, id: id, accepting: s.accepting, configs: s.configs}
}

// enter makes the state's number valid and begins an operation. The grammar's lock is held.
func (s *State) enter() error {
	a := s.g.a
	if a.full() {
		a.reset()
		s.g.masks.reset()
	}
	if s.generation != a.generation {
		id, err := a.restore(s.configs, s.accepting)
		if err != nil {
			return err
		}
		s.id, s.generation, s.configs = id, a.generation, a.states[id].configs
	}
	a.operate()
	return nil
}

// known reports that the state's number is valid and nothing has to be emptied. The lock is held.
func (s *State) known() bool { return s.generation == s.g.a.generation && !s.g.a.full() }

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
	return s.compute()
}

// TryMask is Mask where that is a look-up; ok is false if the mask has to be worked out, or if
// somebody is working on the grammar.
func (s *State) TryMask() (mask []uint32, ok bool) {
	g := s.g
	if !g.mu.TryLock() {
		return nil, false
	}
	defer g.mu.Unlock()
	if !s.known() || g.a.states[s.id].mask == nil {
		return nil, false
	}
	k := g.a.states[s.id].mask
	g.masks.touch(k)
	return k.words, true
}

// compute works the mask out.
func (s *State) compute() ([]uint32, error) {
	g := s.g
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
	if bytes, err := s.bytesOf(token); bytes == nil {
		return err
	}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return s.accept(token)
}

// TryAccept is Accept where that is look-ups; ok is false, and nothing has changed, if steps have to
// be worked out, or if somebody is working on the grammar.
func (s *State) TryAccept(token int32) (ok bool, err error) {
	bytes, err := s.bytesOf(token)
	if bytes == nil {
		return true, err
	}
	g := s.g
	if !g.mu.TryLock() {
		return false, nil
	}
	defer g.mu.Unlock()
	if !s.known() {
		return false, nil
	}
	for id, i := s.id, 0; i < len(bytes) && id != dead; i++ {
		if id = g.a.next[int(id)*g.a.classes+int(g.a.class[bytes[i]])].to; id == unknown {
			return false, nil
		}
	}
	return true, s.accept(token)
}

// bytesOf returns what a token writes. Without any, the token is dealt with: it has ended the text,
// or cannot follow.
func (s *State) bytesOf(token int32) ([]byte, error) {
	v := s.g.vocabulary
	switch {
	case s.ended:
		return nil, fmt.Errorf("%w: %d comes after the end", ErrRefused, token)
	case v.isEnd(token) && !s.accepting:
		return nil, fmt.Errorf("%w: %d ends the text where it is not complete", ErrRefused, token)
	case v.isEnd(token):
		s.ended = true
		return nil, nil
	case token < 0 || int(token) >= len(v.tokens) || v.tokens[token] == nil:
		return nil, fmt.Errorf("%w: %d is a special token or none", ErrRefused, token)
	}
	return v.tokens[token], nil
}

// accept goes on past a token that has text. The lock is held.
func (s *State) accept(token int32) error {
	g := s.g
	v := g.vocabulary
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
