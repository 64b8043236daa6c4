package gateway

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// defaultCompletionTokens is max_tokens of a plain completion that does not say.
const defaultCompletionTokens = 16

// completionCall reads the body of a plain completion.
func (g *Gateway) completionCall(ctx context.Context, f *fields, who caller) (*call, opener, *apiError) {
	m, e := g.modelOf(f)
	if e != nil {
		return nil, nil, e
	}
	f.check(onText)
	p := f.samplingFields()
	if best, ok := f.integer("best_of"); ok && best != int64(p.N) {
		f.fail(unsupported("best_of", "best_of is supported only where it equals n; n is %d, best_of %d", p.N, best))
	}
	c := &call{caller: who, model: m, params: p, constraint: f.constrained(p)}
	echo := f.boolean("echo", false)
	most, explicit := f.completionTokens(echo)
	c.scoreOnly = explicit && most == 0
	p.MaxTokens = max(most, 1)
	logprobs := f.logprobsCount(p, echo)
	usage := f.common(c)
	special := f.boolean("parse_special", true)
	f.prompts(c)
	if f.err != nil {
		return nil, nil, f.err
	}
	hidden := false
	for i := range c.prompts {
		q := &c.prompts[i]
		if q.ids == nil {
			var marked [][2]int
			if special {
				marked = wholly(q.text)
			}
			if q.ids, e = m.encode("prompt", q.text, marked); e != nil {
				return nil, nil, e
			}
			hidden = m.Tokenizer.AddBOS()
		} else if e := checkIDs("prompt", q.ids, m.Tokenizer.Size()); e != nil {
			return nil, nil, e
		} else if echo {
			q.text = m.Tokenizer.Decode(q.ids, false)
		}
		if len(q.ids) == 0 {
			return nil, nil, invalid("prompt", "prompt is empty; the model needs at least one token")
		}
	}
	if e := g.settle(ctx, c, "prompt", explicit); e != nil {
		return nil, nil, e
	}
	open := func(created time.Time) writer {
		out := &completionWriter{call: c, echo: echo, logprobs: logprobs, hidden: hidden,
			wording: newWording(c, "cmpl-", "text_completion", created, usage)}
		if logprobs {
			out.lists = make([]legacyLogprobs, c.choices())
			for i := range out.lists {
				out.lists[i].vocab = m.Tokenizer
			}
		}
		return out
	}
	return c, open, nil
}

// completionTokens reads max_tokens. 0 is allowed with echo alone: the prompt is scored and nothing
// generated.
func (f *fields) completionTokens(echo bool) (most int32, explicit bool) {
	raw, ok := f.get("max_tokens")
	if echo && ok && string(raw) == "0" {
		return 0, true
	}
	if most, explicit = f.maxTokens("max_tokens"); !explicit {
		most = defaultCompletionTokens
	}
	return most, explicit
}

// logprobsCount reads logprobs: how many of the likeliest tokens to list beside the chosen one.
func (f *fields) logprobsCount(p *pb.SamplingParams, echo bool) bool {
	if _, ok := f.get("logprobs"); !ok {
		return false
	}
	top := f.count("logprobs", 0)
	if top < 0 || top > maxLogprobs {
		f.fail(outside("logprobs", top, 0, maxLogprobs))
	}
	p.Logprobs = &top
	if echo {
		p.PromptLogprobs = &top
	}
	return true
}

// prompts reads prompt: a string, a list of strings, a list of token ids, or a list of such lists.
func (f *fields) prompts(c *call) {
	raw, ok := f.get("prompt")
	if !ok {
		f.missing("prompt")
		return
	}
	if raw[0] == '"' {
		s, _ := f.text("prompt")
		c.prompts = []prompt{{text: s}}
		return
	}
	var items []json.RawMessage
	if raw[0] != '[' || json.Unmarshal(raw, &items) != nil {
		f.wrongType("prompt", "a string, an array of strings, an array of token ids or an array of such arrays", raw)
		return
	}
	if len(items) == 0 {
		f.fail(invalid("prompt", "prompt is empty; the model needs at least one token"))
		return
	}
	kind := kindOf(items[0])
	if kind == "a number" {
		c.prompts = []prompt{{ids: f.ids("prompt", items)}}
		return
	}
	if len(items) > maxPrompts {
		f.fail(invalid("prompt", "prompt holds %d prompts; the limit is %d", len(items), maxPrompts))
		return
	}
	for i, item := range items {
		q := prompt{}
		var inner []json.RawMessage
		switch {
		case kindOf(item) != kind:
			f.wrongType("prompt["+strconv.Itoa(i)+"]", kind+" as prompt[0] is", item)
			return
		case kind == "a string":
			_ = json.Unmarshal(item, &q.text) // a valid JSON string always fits a string
		case kind == "an array" && json.Unmarshal(item, &inner) == nil:
			if q.ids = f.ids("prompt", inner); q.ids == nil {
				return
			}
		default:
			f.wrongType("prompt["+strconv.Itoa(i)+"]", "a string or an array of token ids", item)
			return
		}
		c.prompts = append(c.prompts, q)
	}
}

// completionWriter words a plain completion as OpenAI does.
type completionWriter struct {
	wording
	call     *call
	echo     bool
	logprobs bool
	hidden   bool // the prompts' first token is not part of their text
	lists    []legacyLogprobs
}

// text is the piece's text with the echoed prompt before it, where it is due.
func (w *completionWriter) text(p *piece) string {
	if w.echo && p.first {
		return w.call.prompts[p.prompt].text + p.text
	}
	return p.text
}

func (w *completionWriter) choice(b []byte, p *piece, finish pb.FinishReason) []byte {
	b = append(b, `{"text":`...)
	b = appendString(b, w.text(p))
	b = append(b, `,"index":`...)
	b = appendInt(b, p.index)
	b = append(b, `,"logprobs":`...)
	if entries := w.entries(p); len(entries) > 0 || w.logprobs && w.call.whole {
		b = w.lists[p.index].append(b, entries)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"finish_reason":`...)
	b = appendFinish(b, finish)
	if w.call.tokenIDs {
		b = appendIDs(b, "token_ids", p.ids)
		if p.first || w.call.whole {
			b = appendIDs(b, "prompt_token_ids", w.call.prompts[p.prompt].ids)
		}
	}
	return append(b, '}')
}

// entries lists the tokens whose log-probabilities the piece brings.
func (w *completionWriter) entries(p *piece) []legacyEntry {
	if !w.logprobs {
		return nil
	}
	var entries []legacyEntry
	if w.echo && p.first {
		entries = promptEntries(w.call.prompts[p.prompt].ids, p.promptLogprobs, w.hidden)
	}
	for i, lp := range p.logprobs {
		hidden := !w.call.params.ShowSpecialTokens && w.call.model.Tokenizer.IsSpecial(p.ids[i])
		entries = append(entries, legacyEntry{id: p.ids[i], probs: lp, hidden: hidden})
	}
	return entries
}

func (w *completionWriter) event(b []byte, p *piece, ids *pen) []byte {
	const running = pb.FinishReason_FINISH_REASON_UNSPECIFIED
	if w.text(p) == "" && p.finish == running && (!w.logprobs || len(p.logprobs) == 0) && !(w.call.tokenIDs && len(p.ids) > 0) {
		return b
	}
	ended := p.finish != running
	b = ids.append(b, p.index, mark{tokens: p.tokens, text: ended, ended: ended})
	b = append(b, w.head...)
	b = w.choice(b, p, p.finish)
	return w.close(append(b, ']'), p)
}

func (w *completionWriter) whole(b []byte, pieces []piece, u *pb.Usage) []byte {
	b = append(b, w.head...)
	for i := range pieces {
		if i > 0 {
			b = append(b, ',')
		}
		b = w.choice(b, &pieces[i], pieces[i].finish)
	}
	return append(appendUsage(append(b, ']'), u), '}')
}
