package tokenizer

// matcher finds the spellings of special tokens in text: the leftmost, and of several that begin
// there the longest. It is a trie, so that hundreds of tokens that begin alike cost no more than one.
type matcher struct {
	edges map[uint32]int32 // node<<8 | byte → node
	ids   []int32          // node → the token that ends there, -1 if none
	first [256]bool        // bytes that begin some token
}

func newMatcher() *matcher {
	return &matcher{edges: map[uint32]int32{}, ids: []int32{-1}}
}

func (m *matcher) add(text string, id int32) {
	// More nodes than 24 bits would need a vocabulary of longer special tokens than any file has.
	if text == "" || len(m.ids)+len(text) >= 1<<24 {
		return
	}
	m.first[text[0]] = true
	node := int32(0)
	for i := range len(text) {
		key := uint32(node)<<8 | uint32(text[i])
		next, ok := m.edges[key]
		if !ok {
			next = int32(len(m.ids))
			m.ids = append(m.ids, -1)
			m.edges[key] = next
		}
		node = next
	}
	if m.ids[node] < 0 {
		m.ids[node] = id
	}
}

// find returns the next special token of text from an offset on and where it lies, or id -1. allowed
// says which of those that are spelled count; nil: all.
func (m *matcher) find(text string, from int, allowed func(id int32, start, end int) bool) (start, end int, id int32) {
	if len(m.ids) == 1 {
		return len(text), len(text), -1
	}
	for start = from; start < len(text); start++ {
		if !m.first[text[start]] {
			continue
		}
		id, node := int32(-1), int32(0)
		for i := start; i < len(text); i++ {
			next, ok := m.edges[uint32(node)<<8|uint32(text[i])]
			if !ok {
				break
			}
			node = next
			if found := m.ids[node]; found >= 0 && (allowed == nil || allowed(found, start, i+1)) {
				id, end = found, i+1
			}
		}
		if id >= 0 {
			return start, end, id
		}
	}
	return len(text), len(text), -1
}
