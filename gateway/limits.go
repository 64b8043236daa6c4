package gateway

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Limits of one request, the same on every surface.
const (
	maxChoices     = 128
	maxPrompts     = 128
	maxStops       = 16
	maxStopsOpenAI = 4
	maxStopBytes   = 256
	maxStopIDs     = 64
	maxBiases      = 1024
	maxAllowed     = 4096
	maxBadWords    = 128
	maxBadBytes    = 256
	maxLogprobs    = 20
	maxIDBytes     = 128
)

// outside says that an integer is not between lo and hi.
func outside(param string, v, lo, hi int32) *apiError {
	return invalid(param, "%s must be between %d and %d, not %d", param, lo, hi, v)
}

// checkSampling holds the parameters against their ranges. vocab is the number of tokens.
func checkSampling(p *pb.SamplingParams, vocab int) *apiError {
	floats := []struct {
		name   string
		v      *float32
		lo, hi float32
		open   bool // lo itself is out
	}{
		{"temperature", p.Temperature, 0, 2, false},
		{"top_p", p.TopP, 0, 1, true},
		{"min_p", &p.MinP, 0, 1, false},
		{"repetition_penalty", p.RepetitionPenalty, 0, 2, true},
		{"presence_penalty", &p.PresencePenalty, -2, 2, false},
		{"frequency_penalty", &p.FrequencyPenalty, -2, 2, false},
	}
	for _, f := range floats {
		switch {
		case f.v == nil:
		case math.IsNaN(float64(*f.v)) || *f.v < f.lo || *f.v > f.hi:
			return invalid(f.name, "%s must be between %g and %g, not %g", f.name, f.lo, f.hi, *f.v)
		case f.open && *f.v == f.lo:
			return invalid(f.name, "%s must be above %g and at most %g, not %g", f.name, f.lo, f.hi, *f.v)
		}
	}
	counts := []struct {
		name      string
		v, lo, hi int32
	}{
		{"top_k", p.TopK, 0, math.MaxInt32},
		{"n", cmp.Or(p.N, 1), 1, maxChoices},
		{"min_tokens", p.MinTokens, 0, math.MaxInt32},
		{"max_tokens", p.MaxTokens, 0, math.MaxInt32},
		{"logprobs", p.GetLogprobs(), 0, maxLogprobs},
		{"prompt_logprobs", p.GetPromptLogprobs(), 0, maxLogprobs},
	}
	for _, c := range counts {
		if c.v < c.lo || c.v > c.hi {
			return outside(c.name, c.v, c.lo, c.hi)
		}
	}
	if p.MaxTokens > 0 && p.MinTokens > p.MaxTokens {
		return invalid("min_tokens", "min_tokens is %d, more than max_tokens, which is %d", p.MinTokens, p.MaxTokens)
	}
	if len(p.Stop) > maxStops {
		return invalid("stop", "stop holds %d strings; the limit is %d", len(p.Stop), maxStops)
	}
	for i, s := range p.Stop {
		if s == "" || len(s) > maxStopBytes {
			return invalid("stop", "stop[%d] is %d bytes long; a stop string has 1 to %d", i, len(s), maxStopBytes)
		}
	}
	if len(p.StopTokenIds) > maxStopIDs {
		return invalid("stop_token_ids", "stop_token_ids holds %d ids; the limit is %d", len(p.StopTokenIds), maxStopIDs)
	}
	if e := checkIDs("stop_token_ids", p.StopTokenIds, vocab); e != nil {
		return e
	}
	if len(p.AllowedTokenIds) > maxAllowed {
		return invalid("allowed_token_ids", "allowed_token_ids holds %d ids; the limit is %d", len(p.AllowedTokenIds), maxAllowed)
	}
	if e := checkIDs("allowed_token_ids", p.AllowedTokenIds, vocab); e != nil {
		return e
	}
	if len(p.AllowedTokenIds) > 0 && p.Constraint != nil {
		return invalid("allowed_token_ids", "allowed_token_ids together with a restriction of the text: the two may leave nothing to draw")
	}
	if len(p.BadWords) > maxBadWords {
		return invalid("bad_words", "bad_words holds %d strings; the limit is %d", len(p.BadWords), maxBadWords)
	}
	for i, s := range p.BadWords {
		if s == "" || len(s) > maxBadBytes {
			return invalid("bad_words", "bad_words[%d] is %d bytes long; a bad word has 1 to %d", i, len(s), maxBadBytes)
		}
	}
	if len(p.LogitBias) > maxBiases {
		return invalid("logit_bias", "logit_bias holds %d entries; the limit is %d", len(p.LogitBias), maxBiases)
	}
	for id, v := range p.LogitBias {
		if id < 0 || int(id) >= vocab {
			return invalid("logit_bias", "logit_bias names token %d; the model's tokens are 0 to %d", id, vocab-1)
		}
		if math.IsNaN(float64(v)) || v < -100 || v > 100 {
			return invalid("logit_bias", "logit_bias for token %d must be between -100 and 100, not %g", id, v)
		}
	}
	return nil
}

// checkIDs wants every id within the vocabulary.
func checkIDs(param string, ids []int32, vocab int) *apiError {
	for i, id := range ids {
		if id < 0 || int(id) >= vocab {
			return invalid(param, "%s[%d] is %d; the model's tokens are 0 to %d", param, i, id, vocab-1)
		}
	}
	return nil
}

// ofModel is whose context length it mostly is.
const ofModel = "this model's"

// fitContext settles max_tokens for a prompt of n tokens. explicit says that the client chose it: then
// prompt and output must fit together; a default shrinks instead.
func fitContext(p *pb.SamplingParams, param string, n, context int, whose string, explicit bool) (int32, *apiError) {
	if n >= context {
		return 0, tooLong(param, whose, context, "the prompt has %d tokens, output comes on top: shorten it", n)
	}
	room := int32(context - n)
	most := p.MaxTokens
	switch {
	case most == 0:
		most = min(room, max(untold(context), p.MinTokens))
	case most > room && explicit:
		return 0, tooLong(param, whose, context, "the prompt has %d tokens and up to %d more are asked for: shorten it or lower max_tokens", n, most)
	default:
		most = min(most, room)
	}
	if p.MinTokens > most {
		return 0, invalid("min_tokens", "min_tokens is %d; there is room for %d tokens", p.MinTokens, most)
	}
	return most, nil
}

// tooLong refuses a prompt in the words by which client libraries know that it should be shorter.
func tooLong(param, whose string, context int, format string, args ...any) *apiError {
	e := invalid(param, "%s maximum context length is %d tokens; %s", whose, context, fmt.Sprintf(format, args...))
	e.name = "context_length_exceeded"
	return e
}

// untold is the most tokens of an answer whose client has named no bound. Models of small contexts are small
// models, which ramble to the end of any room: they get a quarter of it.
func untold(context int) int32 {
	const small, least = 16384, 512
	if context > small {
		return int32(context)
	}
	return int32(max(context/4, least))
}

// seedOf derives the seed of a request that names none from its id, so that the same id submitted
// twice, through any gateway, is the same request.
func seedOf(id string) uint64 {
	sum := sha256.Sum256([]byte(id))
	return binary.LittleEndian.Uint64(sum[:8])
}

// validID accepts printable ASCII without spaces, up to maxIDBytes.
func validID(id string) bool {
	if id == "" || len(id) > maxIDBytes {
		return false
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] >= 0x7f {
			return false
		}
	}
	return true
}

// settle checks a call's parameters and fits each prompt into the context. param names the prompt in
// errors.
func (g *Gateway) settle(ctx context.Context, c *call, param string, explicit bool) *apiError {
	if e := checkSampling(c.params, c.model.Tokenizer.Size()); e != nil {
		return e
	}
	if e := c.model.checkConstraint(ctx, c.params.Constraint, c.constraint); e != nil {
		return e
	}
	serves := g.serving(c.model)
	context := serves.contextOf(c.tenant)
	if context == 0 {
		context = c.model.ContextLength
	}
	whose := ofModel
	if context < serves.context {
		whose = fmt.Sprintf("tenant %q has a share of the KV cache whose", c.tenant)
	}
	for i := range c.prompts {
		q := &c.prompts[i]
		most, e := fitContext(c.params, param, len(q.ids), context, whose, explicit)
		if e != nil {
			return e
		}
		q.maxTokens = most
	}
	return nil
}
