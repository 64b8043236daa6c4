package chat

import (
	"errors"
	"fmt"
	"time"

	"github.com/ardanlabs/jinja"
)

// Errors of [Template.Render].
var (
	// ErrRejected means that the template itself refused the messages, with raise_exception; the
	// error's text says why. It is the client's error.
	ErrRejected = errors.New("chat: the model's chat template rejects these messages")
	// ErrTooLarge means that rendering went over one of the limits.
	ErrTooLarge = errors.New("chat: rendering the chat template went over a limit")
)

// Limits. They are far above what any published template needs for a context of a million tokens.
const (
	maxSource   = 256 << 10 // bytes of a template
	maxNesting  = 64        // brackets inside brackets
	maxMessages = 16 << 10
	maxOutput   = 64 << 20 // bytes
	maxRounds   = 1 << 20  // of all loops together
	maxCalls    = 1 << 13  // of macros
	maxRange    = 1 << 16  // length of a range()
	maxTime     = 5 * time.Second
)

// Message is one turn of a conversation.
type Message struct {
	Role    string
	Content string
	Name    string // may be empty
}

// Settings are what a template may ask about its model and its surroundings.
type Settings struct {
	BOS, EOS string           // spellings of these tokens, empty if there are none
	Now      func() time.Time // the clock of strftime_now; nil: time.Now
}

// Options are the inputs of one rendering besides the messages.
type Options struct {
	// AddGenerationPrompt ends the prompt with the beginning of the assistant's turn.
	AddGenerationPrompt bool
	// Extra are further variables, such as tools. Values are those of encoding/json; a
	// json.RawMessage keeps the order of its keys.
	Extra map[string]any
}

// Template is a compiled chat template. It is safe for concurrent use.
type Template struct {
	source   string
	compiled *jinja.Template
	settings Settings
}

// New compiles source.
func New(source string, s Settings) (t *Template, err error) {
	// The interpreter is not ours and source comes from a file.
	defer func() {
		if p := recover(); p != nil {
			t, err = nil, fmt.Errorf("chat: the template does not compile: %v", p)
		}
	}()
	if len(source) > maxSource {
		return nil, fmt.Errorf("chat: the template has %d bytes, the limit is %d", len(source), maxSource)
	}
	prepared, err := prepare(source)
	if err != nil {
		return nil, err
	}
	compiled, err := jinja.Compile(prepared)
	if err != nil {
		return nil, fmt.Errorf("chat: the template does not compile: %w", err)
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	return &Template{source: source, compiled: compiled, settings: s}, nil
}

// Source returns the template as it was given.
func (t *Template) Source() string { return t.source }

// Render returns the prompt of messages.
func (t *Template) Render(messages []Message, o Options) (prompt string, err error) {
	if len(messages) > maxMessages {
		return "", fmt.Errorf("%w: %d messages, the limit is %d", ErrTooLarge, len(messages), maxMessages)
	}
	// Templates ask whether these are none, not whether they are defined.
	data := map[string]jinja.Value{"tools": jinja.None(), "documents": jinja.None()}
	for key, v := range o.Extra {
		if data[key], err = value(v); err != nil {
			return "", fmt.Errorf("chat: variable %q: %w", key, err)
		}
	}
	items := make([]jinja.Value, len(messages))
	for i, m := range messages {
		items[i] = jinja.NewDict()
		d := items[i].AsDict()
		d.Set("role", jinja.NewString(m.Role))
		d.Set("content", jinja.NewString(m.Content))
		if m.Name != "" {
			d.Set("name", jinja.NewString(m.Name))
		}
	}
	data["messages"] = jinja.NewList(items)
	data["add_generation_prompt"] = jinja.NewBool(o.AddGenerationPrompt)
	data["bos_token"] = jinja.NewString(t.settings.BOS)
	data["eos_token"] = jinja.NewString(t.settings.EOS)
	b := budget{now: t.settings.Now}
	b.define(data)
	defer func() {
		if p := recover(); p != nil {
			prompt, err = "", fmt.Errorf("chat: rendering the template: %v", p)
		}
	}()
	prompt, err = t.compiled.RenderValues(data)
	switch {
	// The interpreter does not wrap the errors of the functions that it calls.
	case b.err != nil:
		return "", b.err
	case err != nil:
		return "", fmt.Errorf("chat: rendering the template: %w", err)
	case len(prompt) > maxOutput:
		return "", fmt.Errorf("%w: %d bytes of prompt, the limit is %d", ErrTooLarge, len(prompt), maxOutput)
	}
	return prompt, nil
}
