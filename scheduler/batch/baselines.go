package batch

// baseline is what the policies for comparison share.
type baseline struct{}

func (baseline) placed(*member) {}
func (baseline) wide() bool     { return true }
func (baseline) holds() bool    { return false }

// roundRobin: the next worker by id after the one that was served last.
type roundRobin struct {
	baseline
	last string
}

func (p *roundRobin) score(candidates []candidate) {
	for n := range candidates {
		c := &candidates[n]
		c.score = int64(n)
		if c.ID <= p.last {
			c.score += int64(len(candidates))
		}
	}
}

func (p *roundRobin) placed(m *member) { p.last = m.ID }

// leastRequests: sequences that run, wait or were sent.
type leastRequests struct{ baseline }

func (leastRequests) score(candidates []candidate) {
	for n := range candidates {
		candidates[n].score = int64(candidates[n].sequences())
	}
}

// powerOfTwo: leastRequests among two workers, drawn by the number of requests placed so far.
type powerOfTwo struct {
	baseline
	n uint64
}

func (p *powerOfTwo) score(candidates []candidate) {
	all := uint64(len(candidates))
	one := draw(p.n) % all
	two := one
	if all > 1 {
		two = (one + 1 + draw(^p.n)%(all-1)) % all
	}
	for n := range candidates {
		candidates[n].score = int64(candidates[n].sequences())
		if uint64(n) != one && uint64(n) != two {
			candidates[n].score += 1 << 32
		}
	}
}

func (p *powerOfTwo) placed(*member) { p.n++ }

// draw is the nth number of a random sequence (SplitMix64).
func draw(n uint64) uint64 {
	n = (n + 1) * 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// llmd: scorers from 0 to 1, weighed: the waiting queue relative to the shortest and the longest, the
// free share of the KV cache, and the share of the prompt's tokens that match.
type llmd struct{ baseline }

const (
	llmdQueueWeight  = 2
	llmdKVWeight     = 2
	llmdPrefixWeight = 3
)

func (llmd) score(candidates []candidate) {
	least, most := int64(1)<<62, int64(0)
	for n := range candidates {
		q := candidates[n].queued()
		least, most = min(least, q), max(most, q)
	}
	const scale = 1_000_000
	for n := range candidates {
		c := &candidates[n]
		queue := int64(scale)
		if most > least {
			queue = (most - c.queued()) * scale / (most - least)
		}
		kv := c.freeBlocks() * scale / int64(c.TotalBlocks)
		match := min(int64(c.found.Blocks())*int64(c.BlockTokens), c.tokens) * scale / max(1, c.tokens)
		c.score = -(llmdQueueWeight*queue + llmdKVWeight*kv + llmdPrefixWeight*match)
	}
}

// dynamo: blocks of prompts that are pending and of this one, less credits for those that match, plus
// blocks in use. A credit is 1 on the device, 0.75 in host memory, 0.25 on disk.
type dynamo struct{ baseline }

func (dynamo) score(candidates []candidate) {
	for n := range candidates {
		c := &candidates[n]
		size := int64(c.BlockTokens)
		prefill := (c.member.tokens() + c.tokens + size - 1) / size * 100
		credit := 100*int64(c.found.Device) + 75*int64(c.found.Host) + 25*int64(c.found.Disk)
		active := int64(c.TotalBlocks) - c.freeBlocks()
		c.score = max(0, prefill-credit) + 100*active
	}
}

// queued is how many sequences wait on the worker, by its last word and what was sent since.
func (m *member) queued() int64 { return int64(m.load.Waiting + m.charged.sequences) }

func (m *member) freeBlocks() int64 { return int64(m.load.FreeBlocks - m.charged.blocks) }
