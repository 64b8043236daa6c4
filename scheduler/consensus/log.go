package consensus

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// logger lets raft and its stores write to slog, from the level least on. Their info level tells of
// every election step and every segment; so do the warnings of a cluster of one, which elects itself.
type logger struct {
	to    *slog.Logger
	name  string
	args  []any
	least hclog.Level
	said  *repeats
}

// raft says the same several times a second for as long as a node is away. repeats lets such a line through
// when it is new, and then once a minute with how often it was not said.
type repeats struct {
	mu    sync.Mutex
	lines map[string]*repeat
}

type repeat struct {
	at   time.Time
	left int
}

const (
	repeatAfter = time.Minute
	// repeatsKept bounds the lines that are known; there are some forty, some of them one for each node.
	repeatsKept = 256
)

// pass says whether a line may be written, and how many like it have not been.
func (r *repeats) pass(line string, now time.Time) (left int, pass bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.lines[line]
	if known != nil && now.Sub(known.at) < repeatAfter {
		known.left++
		return 0, false
	}
	if known != nil {
		left = known.left
	} else if len(r.lines) >= repeatsKept {
		clear(r.lines)
	}
	r.lines[line] = &repeat{at: now}
	return left, true
}

// lineOf is what makes two lines the same: what they say, and of whom; errors and times may differ.
func lineOf(level hclog.Level, msg string, args []any) string {
	line := level.String() + msg
	for i := 0; i+1 < len(args); i += 2 {
		switch args[i] {
		case "peer", "id", "server-id", "server-address":
			line += fmt.Sprint(" ", args[i+1])
		}
	}
	return line
}

var _ hclog.Logger = (*logger)(nil)

func newLogger(to *slog.Logger, least hclog.Level) hclog.Logger {
	return &logger{to: to.With("part", "raft"), name: "raft", least: least, said: &repeats{lines: map[string]*repeat{}}}
}

func (l *logger) Log(level hclog.Level, msg string, args ...any) {
	if level < l.least || level < hclog.Warn {
		return
	}
	left, pass := l.said.pass(lineOf(level, msg, args), time.Now())
	if left > 0 {
		args = append(args[:len(args):len(args)], "not_said", left)
	}
	switch {
	case !pass:
	case level >= hclog.Error && level != hclog.Off:
		l.to.Log(context.Background(), slog.LevelError, msg, args...)
	case level == hclog.Warn:
		l.to.Log(context.Background(), slog.LevelWarn, msg, args...)
	}
}

func (l *logger) Trace(string, ...any)           {}
func (l *logger) Debug(string, ...any)           {}
func (l *logger) Info(string, ...any)            {}
func (l *logger) Warn(msg string, args ...any)   { l.Log(hclog.Warn, msg, args...) }
func (l *logger) Error(msg string, args ...any)  { l.Log(hclog.Error, msg, args...) }
func (l *logger) IsTrace() bool                  { return false }
func (l *logger) IsDebug() bool                  { return false }
func (l *logger) IsInfo() bool                   { return false }
func (l *logger) IsWarn() bool                   { return l.least <= hclog.Warn }
func (l *logger) IsError() bool                  { return true }
func (l *logger) ImpliedArgs() []any             { return l.args }
func (l *logger) Name() string                   { return l.name }
func (l *logger) SetLevel(hclog.Level)           {}
func (l *logger) GetLevel() hclog.Level          { return l.least }
func (l *logger) Named(name string) hclog.Logger { return l.ResetNamed(l.name + "." + name) }

func (l *logger) With(args ...any) hclog.Logger {
	return &logger{to: l.to.With(args...), name: l.name, args: append(l.args[:len(l.args):len(l.args)], args...), least: l.least, said: l.said}
}

func (l *logger) ResetNamed(name string) hclog.Logger {
	return &logger{to: l.to, name: name, args: l.args, least: l.least, said: l.said}
}

func (l *logger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.to.Handler(), slog.LevelWarn)
}

func (l *logger) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
