package batch

// Policy names a way to choose among the workers that can start a request.
type Policy string

// The policies. All but the first are those of other systems or textbooks, for comparison.
const (
	// PolicyTTFT goes where the first token is predicted soonest, and lets a request wait for a busy
	// worker that holds its prefix if that is sooner than computing it elsewhere.
	PolicyTTFT Policy = "ttft"
	// PolicyRoundRobin takes the workers in turn.
	PolicyRoundRobin Policy = "round-robin"
	// PolicyLeastRequests goes where the fewest sequences run and wait.
	PolicyLeastRequests Policy = "least-requests"
	// PolicyPowerOfTwo draws two workers and goes where the fewer sequences run and wait.
	PolicyPowerOfTwo Policy = "power-of-two"
	// PolicyLLMD weighs queue length, use of the KV cache and matched prefix as llm-d's default
	// scorers do.
	PolicyLLMD Policy = "llm-d"
	// PolicyDynamo adds up prefill blocks less the matched ones and blocks in use, as Dynamo does.
	PolicyDynamo Policy = "dynamo"
)

// Policies lists all, the default first.
func Policies() []Policy {
	return []Policy{PolicyTTFT, PolicyRoundRobin, PolicyLeastRequests, PolicyPowerOfTwo, PolicyLLMD, PolicyDynamo}
}

type policy interface {
	// score rates the candidates, which are in order of their ids if wide: the lowest score is the
	// best, the first of equals.
	score(candidates []candidate)
	// placed says where a request went.
	placed(m *member)
	// wide policies compare all workers that can start the request.
	wide() bool
	// holds says whether a request may wait for a busy worker whose score is better.
	holds() bool
}

func newPolicy(p Policy) policy {
	switch p {
	case PolicyRoundRobin:
		return &roundRobin{}
	case PolicyLeastRequests:
		return leastRequests{}
	case PolicyPowerOfTwo:
		return &powerOfTwo{}
	case PolicyLLMD:
		return llmd{}
	case PolicyDynamo:
		return dynamo{}
	}
	return ttft{}
}

// ttft: predicted time to the first token, and the work weighed for those that come after.
type ttft struct{}

func (ttft) score(candidates []candidate) {
	for n := range candidates {
		c := &candidates[n]
		c.score = c.us + c.workUS(c.work)*sharePermille/1000
	}
}

func (ttft) placed(*member) {}
func (ttft) wide() bool     { return false }
func (ttft) holds() bool    { return true }
