package gateway

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/quire-serve/quire/model/chat"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// maxMessages bounds one conversation.
const maxMessages = 4096

// chatCall reads the body of a chat request.
func (g *Gateway) chatCall(ctx context.Context, f *fields, who caller) (*call, opener, *apiError) {
	m, e := g.modelOf(f)
	if e != nil {
		return nil, nil, e
	}
	f.check(onChat)
	messages := f.messages()
	options := f.template(messages)
	p := f.samplingFields()
	param := "max_completion_tokens"
	most, explicit := f.maxTokens(param)
	if !explicit {
		param = "max_tokens"
		most, explicit = f.maxTokens(param)
	}
	p.MaxTokens = most
	logprobs := f.boolean("logprobs", false)
	top := f.count("top_logprobs", 0)
	if !logprobs && top != 0 {
		f.fail(invalid("top_logprobs", "top_logprobs needs logprobs to be true"))
	}
	if logprobs {
		if top < 0 || top > maxLogprobs {
			f.fail(outside("top_logprobs", top, 0, maxLogprobs))
		}
		p.Logprobs = &top
	}
	c := &call{caller: who, model: m, params: p, constraint: f.constrained(p)}
	usage := f.common(c)
	special := f.boolean("parse_special", false)
	if f.err != nil {
		return nil, nil, f.err
	}
	if e := m.chats("model", "/v1/completions"); e != nil {
		return nil, nil, e
	}
	ids, e := m.renderChat(ctx, messages, options, special)
	if e != nil {
		return nil, nil, e
	}
	c.prompts = []prompt{{ids: ids}}
	if e := g.settle(ctx, c, "messages", explicit); e != nil {
		return nil, nil, e
	}
	object := "chat.completion.chunk"
	if c.whole {
		object = "chat.completion"
	}
	open := func(created time.Time) writer {
		return &chatWriter{call: c, logprobs: logprobs,
			wording: newWording(c, "chatcmpl-", object, created, usage)}
	}
	return c, open, nil
}

// chats refuses a chat with a model that has no chat template, and says what to use instead.
func (m *served) chats(param, instead string) *apiError {
	switch {
	case m.Chat != nil:
		return nil
	case m.NoChat != nil:
		return invalid(param, "model %q cannot chat, use %s: %s", m.ID, instead, clip(m.NoChat.Error(), 300))
	}
	return invalid(param, "model %q has no chat template; use %s", m.ID, instead)
}

// renderChat turns a conversation into the model's prompt. Control tokens are those that the template
// itself writes; what messages hold is plain text, however it is spelled, unless special is set.
func (m *served) renderChat(ctx context.Context, messages []chat.Message, o templating, special bool) ([]int32, *apiError) {
	p, err := m.Chat.Render(ctx, messages, o.Options)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, cancelled(reasonGone)
	case err != nil:
		return nil, invalid("messages", "the model's chat template refuses these messages: %s", clip(err.Error(), 300))
	}
	if o.continues {
		// As transformers do it: the prompt ends where the last text of the last message does.
		last := messages[len(messages)-1].Content
		i := strings.LastIndex(p.Text, last)
		if i < 0 {
			last = strings.TrimSpace(last)
			i = strings.LastIndex(p.Text, last)
		}
		if i < 0 {
			return nil, invalid("continue_final_message", "the model's chat template changes the text of the last message, so it can't be continued")
		}
		p.Text = p.Text[:i+len(last)]
		for len(p.Own) > 0 && p.Own[len(p.Own)-1][1] > len(p.Text) {
			if own := &p.Own[len(p.Own)-1]; own[0] < len(p.Text) {
				own[1] = len(p.Text)
			} else {
				p.Own = p.Own[:len(p.Own)-1]
			}
		}
	}
	if special {
		p.Own = wholly(p.Text)
	}
	return m.encode("messages", p.Text, p.Own)
}

// templating is how a conversation is rendered.
type templating struct {
	chat.Options
	continues bool // the last message is not ended
}

// template reads how the messages are to be rendered.
func (f *fields) template(messages []chat.Message) templating {
	o := templating{continues: f.boolean("continue_final_message", false)}
	o.AddGenerationPrompt = f.boolean("add_generation_prompt", !o.continues)
	if o.continues {
		last := len(messages) - 1
		switch {
		case o.AddGenerationPrompt:
			f.fail(invalid("continue_final_message", "continue_final_message and add_generation_prompt can't both be true"))
		case last >= 0 && (messages[last].Role != "assistant" || messages[last].Content == ""):
			f.fail(invalid("continue_final_message", "continue_final_message needs a last message of the assistant's that has text"))
		}
	}
	if extra, ok := f.object("chat_template_kwargs"); ok {
		o.Extra = map[string]any{}
		for _, name := range extra.names() {
			if slices.Contains([]string{"messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"}, name) {
				f.fail(invalid(extra.path+name, "%s is the gateway's to say", extra.path+name))
			}
			o.Extra[name] = extra.members[name]
		}
	}
	return o
}

// wholly marks all of a text as what may spell control tokens.
func wholly(text string) [][2]int { return [][2]int{{0, len(text)}} }

// encode cuts a prompt's text into tokens, the beginning-of-sequence token first if the model wants
// one and the text does not bring it. The parts of it that are marked may spell control tokens. A text
// that could not fit whatever its tokens is refused before the work.
func (m *served) encode(param, text string, marked [][2]int) ([]int32, *apiError) {
	if least := m.Tokenizer.MinTokens(len(text)); least >= m.ContextLength {
		return nil, tooLong(param, ofModel, m.ContextLength, "the prompt has at least %d tokens, output comes on top: shorten it", least)
	}
	return m.tokens(text, marked), nil
}

// tokens is encode without a limit.
func (m *served) tokens(text string, marked [][2]int) []int32 {
	ids := m.Tokenizer.EncodeMarked(nil, text, marked)
	if bos := m.Tokenizer.BOS(); m.Tokenizer.AddBOS() && (len(ids) == 0 || ids[0] != bos) {
		ids = append([]int32{bos}, ids...)
	}
	return ids
}

// messages reads the conversation.
func (f *fields) messages() []chat.Message {
	items, ok := f.list("messages")
	if !ok {
		f.missing("messages")
		return nil
	}
	if len(items) == 0 || len(items) > maxMessages {
		f.fail(invalid("messages", "messages must hold 1 to %d messages, not %d", maxMessages, len(items)))
		return nil
	}
	list := make([]chat.Message, 0, len(items))
	for i, raw := range items {
		m, ok := f.nested("messages["+strconv.Itoa(i)+"]", raw)
		if !ok {
			return nil
		}
		list = append(list, m.message())
		if m.err != nil {
			f.fail(m.err)
			return nil
		}
	}
	return list
}

func (f *fields) message() chat.Message {
	role, ok := f.text("role")
	if !ok {
		f.missing("role")
	}
	switch role {
	case "system", "user", "assistant":
	case "developer":
		role = "system" // its newer name
	case "tool", "function":
		f.fail(unsupported(f.path+"role", "%srole %q is not supported: tools are not", f.path, role))
	default:
		f.fail(invalid(f.path+"role", "%srole must be system, developer, user or assistant, not %q", f.path, clip(role, 32)))
	}
	for _, name := range []string{"tool_calls", "function_call", "audio"} {
		f.refuse(name, ": tools are not, nor is audio", "[]")
	}
	name, _ := f.text("name")
	return chat.Message{Role: role, Name: name, Content: f.content()}
}

// content reads a message's text: a string, or a list of text parts.
func (f *fields) content() string {
	raw, ok := f.get("content")
	if !ok {
		f.missing("content")
		return ""
	}
	if raw[0] == '"' {
		s, _ := f.text("content")
		return s
	}
	var parts []json.RawMessage
	if raw[0] != '[' || json.Unmarshal(raw, &parts) != nil {
		f.wrongType("content", "a string or an array of parts", raw)
		return ""
	}
	var all strings.Builder
	for i, item := range parts {
		part, ok := f.nested("content["+strconv.Itoa(i)+"]", item)
		if !ok {
			return ""
		}
		kind, _ := part.text("type")
		if part.err == nil && kind != "text" {
			part.fail(unsupported(part.path+"type", "%stype must be \"text\", not %q", part.path, clip(kind, 32)))
		}
		text, ok := part.text("text")
		if !ok {
			part.missing("text")
		}
		if part.err != nil {
			f.fail(part.err)
			return ""
		}
		all.WriteString(text)
	}
	return all.String()
}

// chatWriter words a chat answer as OpenAI does.
type chatWriter struct {
	wording
	call     *call
	logprobs bool
}

// open begins a chunk up to the delta's value.
func (w *chatWriter) open(b []byte, index int) []byte {
	b = append(b, w.head...)
	b = append(b, `{"index":`...)
	b = appendInt(b, index)
	return append(b, `,"delta":`...)
}

// shut ends a chunk after its delta. One with content has the tokens that it is of, with what was asked
// for of them; the one that opens a choice has the prompt's.
func (w *chatWriter) shut(b []byte, p *piece, content bool, finish pb.FinishReason) []byte {
	b = append(b, `,"logprobs":`...)
	if content && w.logprobs && len(p.logprobs) > 0 {
		b = appendChatLogprobs(b, w.call.model.Tokenizer, p.logprobs)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"finish_reason":`...)
	b = appendFinish(b, finish)
	if content && w.call.tokenIDs {
		b = appendIDs(b, "token_ids", p.ids)
	}
	b = append(b, "}]"...)
	if w.call.tokenIDs && !content && finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED {
		b = appendIDs(b, "prompt_token_ids", w.call.prompts[p.prompt].ids)
	}
	return w.close(b, p)
}

func (w *chatWriter) event(b []byte, p *piece, ids *pen) []byte {
	const running = pb.FinishReason_FINISH_REASON_UNSPECIFIED
	content := p.text != "" || w.logprobs && len(p.logprobs) > 0 || w.call.tokenIDs && len(p.ids) > 0
	if p.first {
		if !content && p.finish == running {
			b = ids.append(b, p.index, mark{tokens: p.tokens})
		}
		b = append(w.open(b, p.index), `{"role":"assistant","content":"","refusal":null}`...)
		b = w.shut(b, p, false, running)
	}
	if content {
		b = ids.append(b, p.index, mark{tokens: p.tokens, text: p.finish != running})
		b = append(w.open(b, p.index), `{"content":`...)
		b = append(appendString(b, p.text), '}')
		b = w.shut(b, p, true, running)
	}
	if p.finish != running {
		b = ids.append(b, p.index, mark{tokens: p.tokens, text: true, ended: true})
		b = append(w.open(b, p.index), "{}"...)
		b = w.shut(b, p, false, p.finish)
	}
	return b
}

func (w *chatWriter) whole(b []byte, pieces []piece, u *pb.Usage) []byte {
	b = append(b, w.head...)
	for i := range pieces {
		p := &pieces[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"index":`...)
		b = appendInt(b, p.index)
		b = append(b, `,"message":{"role":"assistant","content":`...)
		b = appendString(b, p.text)
		b = append(b, `,"refusal":null},"logprobs":`...)
		if w.logprobs {
			b = appendChatLogprobs(b, w.call.model.Tokenizer, p.logprobs)
		} else {
			b = append(b, "null"...)
		}
		b = append(b, `,"finish_reason":`...)
		b = appendFinish(b, p.finish)
		if w.call.tokenIDs {
			b = appendIDs(b, "token_ids", p.ids)
		}
		b = append(b, '}')
	}
	b = append(b, ']')
	if w.call.tokenIDs {
		b = appendIDs(b, "prompt_token_ids", w.call.prompts[0].ids)
	}
	return append(appendUsage(b, u), '}')
}
