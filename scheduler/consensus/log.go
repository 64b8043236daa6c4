package consensus

import (
	"context"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// logger lets raft and its stores write to slog, from the level least on. Their info level tells of
// every election step and every segment; so do the warnings of a cluster of one, which elects itself.
type logger struct {
	to    *slog.Logger
	name  string
	args  []any
	least hclog.Level
}

var _ hclog.Logger = (*logger)(nil)

func newLogger(to *slog.Logger, least hclog.Level) hclog.Logger {
	return &logger{to: to.With("part", "raft"), name: "raft", least: least}
}

func (l *logger) Log(level hclog.Level, msg string, args ...any) {
	switch {
	case level < l.least:
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
	return &logger{to: l.to.With(args...), name: l.name, args: append(l.args[:len(l.args):len(l.args)], args...), least: l.least}
}

func (l *logger) ResetNamed(name string) hclog.Logger {
	return &logger{to: l.to, name: name, args: l.args, least: l.least}
}

func (l *logger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.to.Handler(), slog.LevelWarn)
}

func (l *logger) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
