package gateway

import (
	"encoding/json"
	"strconv"
	"strings"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// samplingFields reads the parameters that chat and plain completions share. Ranges are checked
// later, by checkSampling, for all surfaces alike.
func (f *fields) samplingFields() *pb.SamplingParams {
	p := &pb.SamplingParams{
		TopK:      f.count("top_k", 0),
		MinTokens: f.count("min_tokens", 0),
		IgnoreEos: f.boolean("ignore_eos", false),
		N:         f.count("n", 1),
	}
	if p.TopK == -1 {
		p.TopK = 0 // some clients say "all" so
	}
	if p.N < 1 {
		f.fail(outside("n", p.N, 1, maxChoices))
	}
	optional := func(name string, dst **float32) {
		if v, ok := f.number(name); ok {
			*dst = &v
		}
	}
	optional("temperature", &p.Temperature)
	optional("top_p", &p.TopP)
	optional("repetition_penalty", &p.RepetitionPenalty)
	if p.TopP != nil && *p.TopP == 0 {
		// OpenAI allows 0: the smallest set there is, one token.
		p.TopP, p.TopK = nil, 1
	}
	p.MinP, _ = f.number("min_p")
	p.PresencePenalty, _ = f.number("presence_penalty")
	p.FrequencyPenalty, _ = f.number("frequency_penalty")
	if v, ok := f.integer("seed"); ok {
		seed := uint64(v)
		p.Seed = &seed
	}
	p.Stop = f.stops()
	if items, ok := f.list("stop_token_ids"); ok {
		if len(items) > maxStopIDs {
			f.fail(invalid("stop_token_ids", "stop_token_ids holds %d ids; the limit is %d", len(items), maxStopIDs))
			return p
		}
		p.StopTokenIds = f.ids("stop_token_ids", items)
	}
	if items, ok := f.list("allowed_token_ids"); ok {
		if len(items) == 0 || len(items) > maxAllowed {
			f.fail(invalid("allowed_token_ids", "allowed_token_ids holds %d ids; it must hold 1 to %d", len(items), maxAllowed))
			return p
		}
		p.AllowedTokenIds = f.ids("allowed_token_ids", items)
	}
	f.biases(p)
	p.BadWords = f.texts("bad_words", maxBadWords)
	p.IncludeStop = f.boolean("include_stop_str_in_output", false)
	p.IncludeStop = f.boolean("no_stop_trim", false) || p.IncludeStop
	return p
}

// stops reads "stop": a string or a list of strings.
func (f *fields) stops() []string {
	raw, ok := f.get("stop")
	if !ok {
		return nil
	}
	if raw[0] == '"' {
		s, _ := f.text("stop")
		return []string{s}
	}
	if raw[0] != '[' {
		f.wrongType("stop", "a string or an array of strings", raw)
		return nil
	}
	return f.texts("stop", maxStopsOpenAI)
}

// texts reads a list of strings.
func (f *fields) texts(name string, most int) []string {
	items, _ := f.list(name)
	if len(items) > most {
		f.fail(invalid(name, "%s holds %d strings; the limit is %d", name, len(items), most))
		return nil
	}
	texts := make([]string, len(items))
	for i, item := range items {
		if item[0] != '"' || json.Unmarshal(item, &texts[i]) != nil {
			f.wrongType(name+"["+strconv.Itoa(i)+"]", "a string", item)
		}
	}
	return texts
}

// ids reads token ids.
func (f *fields) ids(name string, items []json.RawMessage) []int32 {
	ids := make([]int32, len(items))
	for i, raw := range items {
		v, ok := whole(raw)
		if !ok || v != int64(int32(v)) {
			f.fail(invalid(name, "%s[%d] must be a token id, not %s", f.path+name, i, clip(string(raw), 32)))
			return nil
		}
		ids[i] = int32(v)
	}
	return ids
}

func (f *fields) biases(p *pb.SamplingParams) {
	bias, ok := f.object("logit_bias")
	if !ok || len(bias.members) == 0 {
		return
	}
	if len(bias.members) > maxBiases {
		f.fail(invalid("logit_bias", "logit_bias holds %d entries; the limit is %d", len(bias.members), maxBiases))
		return
	}
	p.LogitBias = make(map[int32]float32, len(bias.members))
	for key := range bias.members {
		id, err := strconv.ParseInt(key, 10, 32)
		if err != nil {
			f.fail(invalid("logit_bias", "logit_bias has the key %q; keys are token ids", clip(key, 32)))
			return
		}
		v, _ := bias.number(key)
		if bias.err != nil {
			f.fail(bias.err)
			return
		}
		p.LogitBias[int32(id)] = v
	}
}

// missing refuses a request without a field that it needs, unless something else is wrong already.
func (f *fields) missing(name string) {
	e := invalid(f.path+name, "%s is missing", f.path+name)
	e.name = "missing_required_parameter"
	f.fail(e)
}

// refuse fails on a field that is present with another value than those that ask for nothing. hint says
// what to do instead.
func (f *fields) refuse(name, hint string, harmless ...string) {
	raw, ok := f.get(name)
	if !ok {
		return
	}
	for _, h := range harmless {
		if strings.Join(strings.Fields(string(raw)), "") == h {
			return
		}
	}
	f.fail(unsupported(f.path+name, "%s is not supported%s", f.path+name, hint))
}

// maxTokens reads a bound on the output.
func (f *fields) maxTokens(name string) (most int32, explicit bool) {
	if _, ok := f.get(name); !ok {
		return 0, false
	}
	most = f.count(name, 1)
	if most < 1 {
		f.fail(invalid(name, "%s must be at least 1, not %d", name, most))
	}
	return most, true
}

// common reads how the answer is to be delivered; it returns whether a stream ends with usage.
func (f *fields) common(c *call) (usage bool) {
	c.priority = f.count("priority", 0)
	if c.priority < minPriority || c.priority > maxPriority {
		f.fail(outside("priority", c.priority, minPriority, maxPriority))
	}
	c.digest = f.digest()
	stream := f.boolean("stream", false)
	c.whole = !stream
	c.params.ShowSpecialTokens = !f.boolean("skip_special_tokens", true)
	c.tokenIDs = f.boolean("return_token_ids", false)
	if options, ok := f.object("stream_options"); ok {
		options.only("include_usage", "continuous_usage_stats", "include_obfuscation")
		usage = options.boolean("include_usage", false)
		c.usageSoFar = options.boolean("continuous_usage_stats", false) && usage
		if options.err != nil {
			f.fail(options.err)
		}
		if !stream {
			f.fail(invalid("stream_options", "stream_options needs stream to be true"))
		}
	}
	return usage && stream
}

// modelOf finds the model that a body names.
func (g *Gateway) modelOf(f *fields) (*served, *apiError) {
	id, ok := f.text("model")
	if !ok {
		f.missing("model")
		return nil, f.err
	}
	if m := g.models[id]; m != nil {
		return m, nil
	}
	return nil, unknownModel(id)
}
