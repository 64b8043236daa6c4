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

// fill walks the trie and sets the bits of the tokens that can follow state id. A byte that cannot
// follow cuts all that is below it; what remains costs a look-up in the table for each node, after
// the table has seen the bytes once. For a vocabulary of 49,152 tokens that is some 80,000 nodes.
func (a *automaton) fill(words []uint32, v *Vocabulary, id int32, path []int32) error {
	path[0] = id
	for i := int32(0); int(i) < len(v.char); {
		depth := v.depth[i]
		class := a.class[v.char[i]]
		to := a.next[int(path[depth])*a.classes+int(class)]
		if to == unknown {
			var err error
			if to, err = a.step(path[depth], class); err != nil {
				return err
			}
		}
		if to == dead {
			i = v.skip[i]
			continue
		}
		path[depth+1] = to
		for _, token := range v.ids[v.first[i]:v.first[i+1]] {
			words[token>>5] |= 1 << (token & 31)
		}
		i++
	}
	if a.states[id].accepting {
		for _, token := range v.ends {
			words[token>>5] |= 1 << (token & 31)
		}
	}
	return nil
}
