package state

import (
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// MaxOutputTokens bounds what is kept of one request's output, all choices together. A choice that
// would grow beyond it does not grow any more.
const MaxOutputTokens = 4 << 20

// extend returns the outputs with what follows them in the news, how many tokens that is, and whether
// anything changed. old
// is not changed, but the new one may share its arrays: nobody else may append to old again. That is
// so because the log is applied once, in order.
func extend(old []*pb.Output, choices int, news []*pb.ChoiceProgress) (outputs []*pb.Output, grown int, changed bool) {
	held := 0
	for _, o := range old {
		held += len(o.GetTokenIds())
	}
	for _, n := range news {
		if n.GetChoice() < 0 || int(n.GetChoice()) >= choices || n.GetFirst() < 0 {
			continue
		}
		var have *pb.Output
		switch {
		case outputs != nil:
			have = outputs[n.GetChoice()]
		case len(old) > 0:
			have = old[n.GetChoice()]
		}
		known := len(have.GetTokenIds()) - int(n.GetFirst())
		if have.GetFinishReason() != 0 || known < 0 {
			continue
		}
		fresh := n.GetTokenIds()[min(known, len(n.GetTokenIds())):]
		if len(fresh) == 0 && n.GetFinishReason() == 0 || held+len(fresh) > MaxOutputTokens {
			continue
		}
		if outputs == nil {
			outputs = make([]*pb.Output, choices)
			for i := range outputs {
				if i < len(old) {
					outputs[i] = old[i]
				} else {
					outputs[i] = &pb.Output{}
				}
			}
		}
		held += len(fresh)
		grown, changed = grown+len(fresh), true
		outputs[n.GetChoice()] = &pb.Output{
			TokenIds:     append(have.GetTokenIds(), fresh...),
			FinishReason: n.GetFinishReason(),
			StopReason:   n.GetStopReason(),
		}
	}
	if !changed {
		return old, 0, false
	}
	return outputs, grown, true
}

// choices is how many outputs a request has.
func choices(r *pb.Request) int {
	return int(min(max(1, r.GetSampling().GetN()), maxChoices))
}

// maxChoices is what the API allows. It bounds what a damaged log can ask for.
const maxChoices = 128

// complete says that every choice ended by itself, so that the outputs are a whole answer.
func complete(outputs []*pb.Output) bool {
	for _, o := range outputs {
		if o.GetFinishReason() == 0 {
			return false
		}
	}
	return len(outputs) > 0
}

// Whole is the output of a request that ended by itself, if it is kept: all that another run of it would
// generate.
func (r *Record) Whole() []*pb.Output {
	if r.Phase != Finished || !stopped(r.FinishReason) {
		return nil
	}
	return r.Outputs
}

// stopped reports whether a request with this reason ended by itself.
func stopped(reason pb.FinishReason) bool { return reason <= pb.FinishReason_FINISH_REASON_LENGTH }
