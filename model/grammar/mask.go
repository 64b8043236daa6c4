package grammar

// A mask is the set of tokens that may follow a state, in the list of masks by last use.
type mask struct {
	words      []uint32
	of         int32
	newer, old *mask
}

// masks keeps masks by last use. The list is a ring through its head.
type masks struct {
	head  mask
	count int
}

func (m *masks) reset() {
	m.head.newer, m.head.old = &m.head, &m.head
	m.count = 0
}

func (m *masks) touch(k *mask) {
	if k.newer != nil {
		k.newer.old, k.old.newer = k.old, k.newer
		m.count--
	}
	k.newer, k.old = &m.head, m.head.old
	k.old.newer, m.head.old = k, k
	m.count++
}

// oldest takes the mask that was not used for longest out of the list.
func (m *masks) oldest() *mask {
	k := m.head.newer
	m.head.newer, k.old.newer = k.newer, k.newer
	k.newer.old = k.old
	k.newer, k.old = nil, nil
	m.count--
	return k
}

// fill sets the bits of the tokens that can follow state id.
func (a *automaton) fill(words []uint32, v *Vocabulary, id int32, path []int32) error {
	n, ok, err := a.plainRun(id)
	if err != nil {
		return err
	}
	t := &v.all
	if ok {
		copy(words, v.plain[n])
		t = &v.rest
	}
	if err := a.walk(words, t, id, path); err != nil {
		return err
	}
	if a.states[id].accepting {
		for _, token := range v.ends {
			set(words, token)
		}
	}
	return nil
}

// walk goes through the trie. A byte that cannot follow cuts all that is below it; what remains
// costs a look-up in the table of steps for each node. Where nothing is cut, as in a string, that
// is some 100,000 nodes for a vocabulary of 49,152 tokens, which is why plainRun is tried first.
func (a *automaton) walk(words []uint32, t *trie, id int32, path []int32) error {
	path[0] = id
	for i := 0; i < len(t.nodes); {
		n := &t.nodes[i]
		class := a.class[n.char]
		from := path[n.depth]
		step := &a.next[int(from)*a.classes+int(class)]
		to := step.to
		if step.used != a.operation {
			var err error
			if to, err = a.step(from, class); err != nil {
				return err
			}
		}
		if to == dead {
			i = int(n.skip)
			continue
		}
		path[n.depth+1] = to
		for _, token := range t.ids[n.first : n.first+int32(n.count)] {
			set(words, token)
		}
		i++
	}
	return nil
}

// plainRun reports, with ok, that the state does not tell plain characters apart: any n of them
// may follow and no more (or more than maxPlain).
func (a *automaton) plainRun(id int32) (n int, ok bool, err error) {
	for ; n < maxPlain; n++ {
		after := unknown
		last := -1
		for c := byte(' '); c <= '~'; c++ {
			class := a.class[c]
			if !isPlain(c) || int(class) == last {
				continue
			}
			last = int(class)
			var to int32
			if to, err = a.step(id, class); err != nil {
				return 0, false, err
			}
			if after != unknown && to != after {
				return 0, false, nil
			}
			after = to
		}
		if after == id {
			return maxPlain, true, nil
		}
		if after == dead {
			return n, true, nil
		}
		id = after
	}
	return n, true, nil
}
