package gateway

import (
	"slices"
	"strings"
)

// The parameters of OpenAI's two endpoints, with those of vLLM, SGLang and llama.cpp's server, once:
// which there are, and what becomes of each. A body may hold no others, so none is dropped without a
// word. docs/api.md shows the table.

// where says on which endpoint a parameter stands.
type where uint8

const (
	onChat where = 1 << iota
	onText
	onBoth = onChat | onText
)

func (w where) String() string {
	return [...]string{"", "chat", "completions", "both"}[w]
}

// parameter is one of them.
type parameter struct {
	name string
	on   where
	// values says what it may be, and absent what holds without it.
	values, absent string
	// does says what comes of it, or of one that is refused why, or what to use instead.
	does string
	what treatment
	// harmless are the values of a refused one that ask for nothing, without white space.
	harmless []string
}

type treatment uint8

const (
	// obeyed: it does what the peers' users expect.
	obeyed treatment = iota
	// idle: it is taken, and could change nothing here.
	idle
	// refused: 400, but for values that ask for nothing.
	refused
)

var parameters = []parameter{
	{name: "model", on: onBoth, values: "one of `GET /v1/models`", absent: "required", does: "who answers"},
	{name: "messages", on: onChat, values: "1 to 4096 messages", absent: "required", does: "the conversation"},
	{name: "prompt", on: onText, values: "a text, up to 128 texts, token ids, or up to 128 lists of token ids", absent: "required", does: "what is continued"},
	{name: "temperature", on: onBoth, values: "0 to 2; 0 is greedy", absent: "1", does: "divides the logits"},
	{name: "top_p", on: onBoth, values: "0 to 1; 0 is one token", absent: "1", does: "draws from the smallest set of that probability"},
	{name: "top_k", on: onBoth, values: "0 or -1 (all) and up", absent: "0", does: "draws from the k likeliest"},
	{name: "min_p", on: onBoth, values: "0 to 1", absent: "0", does: "drops tokens below that share of the likeliest one's probability"},
	{name: "repetition_penalty", on: onBoth, values: "above 0 to 2", absent: "1", does: "divides or multiplies logits of tokens in prompt and output"},
	{name: "presence_penalty", on: onBoth, values: "-2 to 2", absent: "0", does: "subtracted once from tokens of the output"},
	{name: "frequency_penalty", on: onBoth, values: "-2 to 2", absent: "0", does: "subtracted per occurrence in the output"},
	{name: "logit_bias", on: onBoth, values: "up to 1024 token ids with -100 to 100 each", absent: "none", does: "added to their logits"},
	{name: "allowed_token_ids", on: onBoth, values: "1 to 4096 token ids", absent: "all", does: "draws no others, nor the model's own end; not with a restriction of the text"},
	{name: "bad_words", on: onBoth, values: "up to 128 texts of 1 to 256 bytes", absent: "none", does: "sequences of tokens that are not drawn, [see below](#bad-words)"},
	{name: "seed", on: onBoth, values: "an integer", absent: "derived from the request's id, for each prompt its own", does: "keys the draws: the same request with the same seed gives the same tokens"},
	{name: "n", on: onBoth, values: "1 to 128", absent: "1", does: "how many choices"},
	{name: "best_of", on: onText, values: "as `n`", absent: "`n`", does: "only where it equals `n`"},
	{name: "stop", on: onBoth, values: "a text or up to 4, of 1 to 256 bytes", absent: "none", does: "ends a choice before it"},
	{name: "stop_token_ids", on: onBoth, values: "up to 64 token ids", absent: "none", does: "ends a choice with one of them"},
	{name: "include_stop_str_in_output", on: onBoth, values: "true, false", absent: "false", does: "a choice ends with what stopped it: the stop string in its text, or the token among its ids, and in its text where that shows it"},
	{name: "no_stop_trim", on: onBoth, values: "true, false", absent: "false", does: "the same in SGLang's words"},
	{name: "min_tokens", on: onBoth, values: "0 to `max_tokens`", absent: "0", does: "tokens before a stop counts"},
	{name: "ignore_eos", on: onBoth, values: "true, false", absent: "false", does: "goes on past the model's own end"},
	{name: "max_completion_tokens", on: onChat, values: "1 and up", absent: "the rest of the context, of one of up to 16384 tokens a quarter", does: "most tokens of a choice"},
	{name: "max_tokens", on: onChat, values: "1 and up", absent: "the rest of the context, of one of up to 16384 tokens a quarter", does: "as `max_completion_tokens`, which goes first"},
	{name: "max_tokens", on: onText, values: "1 and up; 0 with `echo`", absent: "16", does: "most tokens of a choice"},
	{name: "logprobs", on: onChat, values: "true, false", absent: "false", does: "log-probabilities of the tokens"},
	{name: "top_logprobs", on: onChat, values: "0 to 20", absent: "0", does: "so many likeliest tokens beside each"},
	{name: "logprobs", on: onText, values: "0 to 20", absent: "none", does: "log-probabilities, with so many likeliest tokens"},
	{name: "echo", on: onText, values: "true, false", absent: "false", does: "the prompt before the output"},
	{name: "stream", on: onBoth, values: "true, false", absent: "false", does: "server-sent events"},
	{name: "stream_options", on: onBoth, values: "`include_usage`, `continuous_usage_stats` (both true, false)", absent: "none", does: "usage at the stream's end; usage so far in every chunk"},
	{name: "response_format", on: onBoth, values: "`text`, `json_object` (with `schema`: that), `json_schema`", absent: "`text`", does: "restricts the output, see [structured output](structured-output.md)"},
	{name: "structured_outputs", on: onBoth, values: "`json`, `regex`, `choice`, `json_object`; `whitespace_pattern`, `disable_any_whitespace`", absent: "none", does: "the same in vLLM's words"},
	{name: "guided_json", on: onBoth, values: "a schema", absent: "none", does: "the same in vLLM's older words"},
	{name: "guided_regex", on: onBoth, values: "an expression", absent: "none", does: "the same"},
	{name: "guided_choice", on: onBoth, values: "texts", absent: "none", does: "the same"},
	{name: "guided_whitespace_pattern", on: onBoth, values: "an expression", absent: "at most one blank", does: "white space in JSON"},
	{name: "json_schema", on: onBoth, values: "a schema", absent: "none", does: "the same in llama.cpp's and SGLang's words"},
	{name: "regex", on: onBoth, values: "an expression", absent: "none", does: "the same in SGLang's words"},
	{name: "skip_special_tokens", on: onBoth, values: "true, false", absent: "true", does: "leaves control tokens out of the text"},
	{name: "parse_special", on: onBoth, values: "true, false", absent: "chat: false; completions: true", does: "whether spellings of control tokens in the request's text become these tokens, [see below](#control-tokens-in-text)"},
	{name: "add_generation_prompt", on: onChat, values: "true, false", absent: "true", does: "whether the template opens the assistant's turn"},
	{name: "continue_final_message", on: onChat, values: "true, false", absent: "false", does: "goes on with the text of the last message, which is the assistant's; with `add_generation_prompt` false"},
	{name: "chat_template_kwargs", on: onChat, values: "an object", absent: "none", does: "further variables of the model's chat template, such as `enable_thinking`"},
	{name: "return_token_ids", on: onBoth, values: "true, false", absent: "false", does: "`token_ids` in every choice, and `prompt_token_ids`: in the body for chats, in the choices for completions; in a stream with the first chunk"},
	{name: "priority", on: onBoth, values: "-8 to 7; lower is more urgent", absent: "0", does: "the order of the queue"},

	{name: "user", on: onBoth, what: idle, does: "no accounting by end user; see `X-Quire-Tenant`"},
	{name: "safety_identifier", on: onChat, what: idle, does: "as `user`"},
	{name: "metadata", on: onBoth, what: idle, does: "nothing is stored"},
	{name: "prompt_cache_key", on: onChat, what: idle, does: "prompts go where their prefix is cached by themselves"},
	{name: "prompt_cache_retention", on: onChat, what: idle, does: "as `prompt_cache_key`"},
	{name: "parallel_tool_calls", on: onChat, what: idle, does: "there are no tools"},
	{name: "guided_decoding_backend", on: onBoth, what: idle, does: "there is one"},
	{name: "include_reasoning", on: onChat, what: idle, does: "reasoning is part of the text"},
	{name: "separate_reasoning", on: onChat, what: idle, does: "as `include_reasoning`"},
	{name: "stream_reasoning", on: onChat, what: idle, does: "as `include_reasoning`"},
	{name: "timings_per_token", on: onBoth, what: idle, does: "timings are in the [metrics](metrics.md)"},

	{name: "tools", on: onChat, what: refused, harmless: []string{"[]"}},
	{name: "tool_choice", on: onChat, what: refused, harmless: []string{`"none"`, `"auto"`}},
	{name: "functions", on: onChat, what: refused, harmless: []string{"[]"}},
	{name: "function_call", on: onChat, what: refused, harmless: []string{`"none"`, `"auto"`}},
	{name: "modalities", on: onChat, what: refused, harmless: []string{`["text"]`}},
	{name: "audio", on: onChat, what: refused},
	{name: "prediction", on: onChat, what: refused},
	{name: "web_search_options", on: onChat, what: refused},
	{name: "store", on: onChat, what: refused, harmless: []string{"false"}, does: "nothing is stored"},
	{name: "service_tier", on: onBoth, what: refused, harmless: []string{`"auto"`, `"default"`}, does: "use `priority`"},
	{name: "reasoning_effort", on: onChat, what: refused, harmless: []string{`"none"`}},
	{name: "verbosity", on: onChat, what: refused, harmless: []string{`"medium"`}},
	{name: "suffix", on: onText, what: refused, harmless: []string{`""`}},
	{name: "echo", on: onChat, what: refused, harmless: []string{"false"}},

	{name: "stop_regex", on: onBoth, what: refused, harmless: []string{"[]", `""`}},
	{name: "use_beam_search", on: onBoth, what: refused, harmless: []string{"false"}},
	{name: "length_penalty", on: onBoth, what: refused, harmless: []string{"1", "1.0"}},
	{name: "spaces_between_special_tokens", on: onBoth, what: refused, harmless: []string{"true"}},
	{name: "truncate_prompt_tokens", on: onBoth, what: refused},
	{name: "prompt_logprobs", on: onBoth, what: refused, does: "use completions with `echo` and `logprobs`"},
	{name: "prompt_embeds", on: onText, what: refused},
	{name: "add_special_tokens", on: onChat, what: refused, harmless: []string{"false"}},
	{name: "add_special_tokens", on: onText, what: refused, harmless: []string{"true"}, does: "give token ids"},
	{name: "chat_template", on: onChat, what: refused, does: "render it yourself and use completions"},
	{name: "documents", on: onChat, what: refused, harmless: []string{"[]"}},
	{name: "mm_processor_kwargs", on: onBoth, what: refused, harmless: []string{"{}"}},
	{name: "guided_grammar", on: onBoth, what: refused, does: "use a schema or an expression"},
	{name: "grammar", on: onBoth, what: refused, harmless: []string{`""`}, does: "use a schema or an expression"},
	{name: "ebnf", on: onBoth, what: refused, does: "use a schema or an expression"},
	{name: "structural_tag", on: onBoth, what: refused},
	{name: "logits_processors", on: onBoth, what: refused, harmless: []string{"[]"}},
	{name: "custom_logit_processor", on: onBoth, what: refused},
	{name: "custom_params", on: onBoth, what: refused, harmless: []string{"{}"}},
	{name: "request_id", on: onBoth, what: refused, does: "use `Idempotency-Key`"},
	{name: "rid", on: onBoth, what: refused, does: "use `Idempotency-Key`"},
	{name: "cache_salt", on: onBoth, what: refused, does: "use `X-Quire-Tenant`"},
	{name: "return_tokens_as_token_ids", on: onBoth, what: refused, harmless: []string{"false"}, does: "use `return_token_ids`"},
	{name: "return_hidden_states", on: onBoth, what: refused, harmless: []string{"false"}},
	{name: "kv_transfer_params", on: onBoth, what: refused},
	{name: "vllm_xargs", on: onBoth, what: refused, harmless: []string{"{}"}},
	{name: "lora_path", on: onBoth, what: refused},
	{name: "lora", on: onBoth, what: refused, harmless: []string{"[]"}},
	{name: "session_params", on: onBoth, what: refused},
	{name: "data_parallel_rank", on: onBoth, what: refused},
	{name: "min_new_tokens", on: onBoth, what: refused, harmless: []string{"0"}, does: "use `min_tokens`"},
	{name: "max_new_tokens", on: onBoth, what: refused, does: "use `max_tokens`"},
	{name: "n_predict", on: onBoth, what: refused, harmless: []string{"-1"}, does: "use `max_tokens`"},
	{name: "n_keep", on: onBoth, what: refused, harmless: []string{"0"}},
	{name: "n_discard", on: onBoth, what: refused, harmless: []string{"0"}},
	{name: "n_probs", on: onBoth, what: refused, harmless: []string{"0"}, does: "use `logprobs`"},
	{name: "min_keep", on: onBoth, what: refused, harmless: []string{"0"}},
	{name: "id_slot", on: onBoth, what: refused, harmless: []string{"-1"}},
	{name: "cache_prompt", on: onBoth, what: refused, harmless: []string{"true"}},
	{name: "repeat_penalty", on: onBoth, what: refused, harmless: []string{"1", "1.0"}, does: "use `repetition_penalty`"},
	{name: "repeat_last_n", on: onBoth, what: refused},
	{name: "typical_p", on: onBoth, what: refused, harmless: []string{"1", "1.0"}},
	{name: "top_n_sigma", on: onBoth, what: refused, harmless: []string{"-1", "-1.0"}},
	{name: "dynatemp_range", on: onBoth, what: refused, harmless: []string{"0", "0.0"}},
	{name: "dynatemp_exponent", on: onBoth, what: refused, harmless: []string{"1", "1.0"}},
	{name: "mirostat", on: onBoth, what: refused, harmless: []string{"0"}},
	{name: "mirostat_tau", on: onBoth, what: refused},
	{name: "mirostat_eta", on: onBoth, what: refused},
	{name: "xtc_probability", on: onBoth, what: refused, harmless: []string{"0", "0.0"}},
	{name: "xtc_threshold", on: onBoth, what: refused},
	{name: "dry_multiplier", on: onBoth, what: refused, harmless: []string{"0", "0.0"}},
	{name: "dry_base", on: onBoth, what: refused},
	{name: "dry_allowed_length", on: onBoth, what: refused},
	{name: "dry_penalty_last_n", on: onBoth, what: refused},
	{name: "dry_sequence_breakers", on: onBoth, what: refused, harmless: []string{"[]"}},
	{name: "samplers", on: onBoth, what: refused},
	{name: "t_max_predict_ms", on: onBoth, what: refused, harmless: []string{"0"}},
	{name: "post_sampling_probs", on: onBoth, what: refused, harmless: []string{"false"}},
	{name: "response_fields", on: onBoth, what: refused, harmless: []string{"[]"}},
	{name: "return_tokens", on: onBoth, what: refused, harmless: []string{"false"}, does: "use `return_token_ids`"},
	{name: "return_progress", on: onBoth, what: refused, harmless: []string{"false"}},
	{name: "reasoning_format", on: onChat, what: refused, harmless: []string{`"none"`, `"auto"`}},
	{name: "parse_tool_calls", on: onChat, what: refused, harmless: []string{"false"}},
	{name: "image_data", on: onBoth, what: refused, harmless: []string{"[]"}},
}

// parameterOf finds a parameter of an endpoint.
func parameterOf(name string, on where) (*parameter, bool) {
	for i := range parameters {
		if p := &parameters[i]; p.name == name && p.on&on != 0 {
			return p, true
		}
	}
	return nil, false
}

// check refuses what the endpoint does not know, and what it knows and does not do.
func (f *fields) check(on where) {
	for _, name := range f.names() {
		p, ok := parameterOf(name, on)
		switch {
		case !ok:
			f.unknown(name, on)
		case p.what == refused:
			f.refuse(name, instead(p.does), p.harmless...)
		}
	}
}

// instead words what to do without a refused parameter.
func instead(does string) string {
	if does == "" {
		return ""
	}
	return "; " + strings.ReplaceAll(does, "`", "")
}

// unknown refuses a parameter that there is not, with the name that may be meant.
func (f *fields) unknown(name string, on where) {
	if _, ok := f.get(name); !ok {
		return // null asks for nothing
	}
	hint := ""
	least := 3 // edits, of which two may be a slip
	for i := range parameters {
		if p := &parameters[i]; p.on&on != 0 && p.what == obeyed {
			if n := edits(name, p.name); n < least {
				least, hint = n, "; is "+p.name+" meant?"
			}
		}
	}
	if _, ok := parameterOf(name, onBoth&^on); ok {
		hint = "; it is one of " + (onBoth &^ on).String()
	}
	e := unsupported(f.path+clip(name, 64), "there is no parameter %q%s", clip(name, 64), hint)
	e.name = "unknown_parameter"
	f.fail(e)
}

// edits is how many bytes must be put in, taken out or changed to make a of b, at most 3.
func edits(a, b string) int {
	if len(a) > len(b)+2 || len(b) > len(a)+2 {
		return 3
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := corner
			if a[i] != b[j] {
				cost++
			}
			corner = row[j+1]
			row[j+1] = min(cost, row[j]+1, corner+1)
		}
	}
	return min(row[len(b)], 3)
}

// parametersTable is the table as docs/api.md shows it.
func parametersTable() string {
	var out strings.Builder
	out.WriteString("| parameter | of | values | without it | what it does |\n|---|---|---|---|---|\n")
	for _, p := range parameters {
		if p.what == obeyed {
			out.WriteString("| `" + p.name + "` | " + p.on.String() + " | " + p.values + " | " + p.absent + " | " + p.does + " |\n")
		}
	}
	out.WriteString("\nTaken, and without effect:\n\n| parameter | of | why |\n|---|---|---|\n")
	for _, p := range parameters {
		if p.what == idle {
			out.WriteString("| `" + p.name + "` | " + p.on.String() + " | " + p.does + " |\n")
		}
	}
	out.WriteString("\nRefused by name, but for values that ask for nothing:\n\n| parameter | of | let pass | instead |\n|---|---|---|---|\n")
	for _, p := range parameters {
		if p.what == refused {
			pass := ""
			for _, h := range p.harmless {
				pass += ", `" + h + "`"
			}
			out.WriteString("| `" + p.name + "` | " + p.on.String() + " | " + strings.TrimPrefix(pass, ", ") + " | " + p.does + " |\n")
		}
	}
	return out.String()
}

// names are the members' names in order, so that of several faults the same one is named each time.
func (f *fields) names() []string {
	names := make([]string, 0, len(f.members))
	for name := range f.members {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// only refuses members of a nested object that are none of these.
func (f *fields) only(names ...string) {
	for _, name := range f.names() {
		if _, ok := f.get(name); ok && !slices.Contains(names, name) {
			e := unsupported(f.path+clip(name, 64), "there is no parameter %q", f.path+clip(name, 64))
			e.name = "unknown_parameter"
			f.fail(e)
		}
	}
}
