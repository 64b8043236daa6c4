package gateway

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestChangesAreToldOnce: the log says that a model takes no requests, and that it does again, once each, and
// nothing of what passes within settled.
func TestChangesAreToldOnce(t *testing.T) {
	var log bytes.Buffer
	m := &served{Model: Model{ID: "m"}, log: slog.New(slog.NewTextHandler(&log, nil))}
	at := time.Unix(0, 0)
	pass := func(reason string, d time.Duration) {
		for end := at.Add(d); at.Before(end); at = at.Add(supervision) {
			m.tell(reason, at)
		}
	}
	pass(noReadyWorker, settled/2) // it starts
	pass("", time.Minute)
	if log.Len() != 0 {
		t.Errorf("a start is told: %s", &log)
	}
	pass(noReadyWorker, time.Minute)
	pass("", settled/2) // a flap
	pass(noReadyWorker, time.Minute)
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, noReadyWorker) {
		t.Errorf("a loss is told as %s", got)
	}
	pass("", time.Minute)
	if got := log.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "a model takes requests") {
		t.Errorf("the end of it is told as %s", got)
	}
}
