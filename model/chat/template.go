package chat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"

	"github.com/quire-serve/quire/model/chat/jinja"
)

// Errors of [Template.Render].
var (
	// ErrRejected means that the template itself refused the messages, with raise_exception; the
	// error's text says why. It is the client's error.
	ErrRejected = errors.New("chat: the model's chat template rejects these messages")
	// ErrTooLarge means that rendering went over one of the limits.
	ErrTooLarge = errors.New("chat: rendering the chat template went over a limit")
)

// Limits. A published template takes a few hundred steps a message and builds its text less than ten
// times over.
const (
	maxSource   = 256 << 10 // bytes of a template
	maxMessages = 16 << 10
	// What a rendering may spend: so much, and so much for each byte that it is given.
	steps, stepsPerByte = 2 << 20, 1
	bytes, bytesPerByte = 16 << 20, 16
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

// Prompt is a rendered conversation.
type Prompt struct {
	Text string
	// Own are the parts of Text that the template's author wrote, as byte offsets [from, to),
	// ascending and not touching. The rest came with the messages.
	Own [][2]int
}

// Template is a compiled chat template. It is safe for concurrent use.
type Template struct {
	source   string
	compiled *jinja.Template
	settings Settings
	// slots bounds the renderings at once, and so their memory together; more could not run anyway.
	slots chan struct{}
}

// New compiles source.
func New(source string, s Settings) (*Template, error) {
	if len(source) > maxSource {
		return nil, fmt.Errorf("chat: the template has %d bytes, the limit is %d", len(source), maxSource)
	}
	compiled, err := jinja.Parse(source)
	if err != nil {
		return nil, fmt.Errorf("chat: the template does not compile: %w", err)
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	return &Template{source: source, compiled: compiled, settings: s, slots: make(chan struct{}, runtime.GOMAXPROCS(0))}, nil
}

// Source returns the template as it was given.
func (t *Template) Source() string { return t.source }

// Render returns the prompt of messages, unless ctx ends before that.
func (t *Template) Render(ctx context.Context, messages []Message, o Options) (Prompt, error) {
	if len(messages) > maxMessages {
		return Prompt{}, fmt.Errorf("%w: %d messages, the limit is %d", ErrTooLarge, len(messages), maxMessages)
	}
	given := 0
	items := make([]any, len(messages))
	for i, m := range messages {
		given += len(m.Role) + len(m.Content) + len(m.Name) + 64
		object := jinja.Object{{Name: "role", Value: m.Role}, {Name: "content", Value: m.Content}}
		if m.Name != "" {
			object = append(object, jinja.Member{Name: "name", Value: m.Name})
		}
		items[i] = object
	}
	// Templates ask whether tools and documents are none, not whether they are defined.
	variables := jinja.Object{{Name: "tools"}, {Name: "documents"}}
	for _, name := range slices.Sorted(maps.Keys(o.Extra)) {
		if raw, ok := o.Extra[name].(json.RawMessage); ok {
			given += len(raw)
		}
		variables = append(variables, jinja.Member{Name: name, Value: o.Extra[name]})
	}
	variables = append(variables, jinja.Object{
		{Name: "messages", Value: items},
		{Name: "add_generation_prompt", Value: o.AddGenerationPrompt},
		{Name: "bos_token", Value: jinja.Own(t.settings.BOS)},
		{Name: "eos_token", Value: jinja.Own(t.settings.EOS)},
	}...)

	select {
	case t.slots <- struct{}{}:
	case <-ctx.Done():
		return Prompt{}, context.Cause(ctx)
	}
	defer func() { <-t.slots }()
	out, err := t.compiled.Render(ctx, variables, jinja.Environment{
		Limits: jinja.Limits{Steps: steps + stepsPerByte*given, Bytes: bytes + bytesPerByte*given},
		Now:    t.settings.Now,
	})
	var e *jinja.Error
	switch {
	case errors.As(err, &e) && e.Raised:
		return Prompt{}, fmt.Errorf("%w: %s", ErrRejected, e.Text)
	case errors.As(err, &e) && e.Limit:
		return Prompt{}, fmt.Errorf("%w: %w", ErrTooLarge, err)
	case err != nil:
		return Prompt{}, fmt.Errorf("chat: rendering the template: %w", err)
	}
	p := Prompt{Text: out.String()}
	for _, own := range out.Own() {
		p.Own = append(p.Own, [2]int{own.From, own.To})
	}
	return p, nil
}
