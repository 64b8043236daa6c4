package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// A model of which no worker takes requests: its workers are cordoned, drain, are unhealthy or gone. What
// has not been started waits unservedGrace for one; what runs elsewhere again waits on, for its client has a
// part of it. So does a request that no worker of its model can hold to its end any more: on a smaller one its
// answer would be another.

// unservedModel refuses a request for a model of which no worker takes any.
func unservedModel(model, why string) *refusal {
	return refuse(reasonNoWorker, codes.Unavailable, unservedGrace/2, "model %q takes no requests: %s", model, why)
}

// noWorker says why no worker of a model takes requests; empty if one does. The caller holds the lock.
func (l *leader) noWorker(model string) string {
	view := l.s.store.View()
	known, gone, cordoned, draining, unhealthy := 0, 0, 0, 0, 0
	for id, w := range l.workers {
		if w.GetModel() != model {
			continue
		}
		known++
		switch s := l.sessions[id]; {
		case s == nil:
			gone++
		case s.draining:
			draining++
		case view.Cordoned(w):
			cordoned++
		case s.unhealthy:
			unhealthy++
		default:
			return ""
		}
	}
	if known == 0 {
		return "it has no workers"
	}
	return fmt.Sprintf("of %d workers %d are cordoned, %d drain, %d are unhealthy and %d are out of reach", known, cordoned, draining, unhealthy, gone)
}

// endUnserved notes which models no worker takes requests for, and ends those that have waited too long.
func (l *leader) endUnserved(now time.Time) {
	for name, since := range l.shrank {
		if now.Sub(since) >= unservedGrace {
			delete(l.shrank, name)
			l.endTooLong(name)
		}
	}
	models := map[string]bool{}
	for m := range l.s.store.View().Models() {
		models[m.Name] = true
		if l.noWorker(m.Name) == "" {
			delete(l.unserved, m.Name)
		} else if _, known := l.unserved[m.Name]; !known {
			l.unserved[m.Name] = now
		}
	}
	due := map[string]string{}
	for name, since := range l.unserved {
		if !models[name] {
			delete(l.unserved, name)
		} else if now.Sub(since) >= unservedGrace {
			due[name] = l.noWorker(name)
		}
	}
	if !maps.Equal(due, l.refusing) {
		l.refusing = due
		told := l.refusals()
		for _, o := range l.owners {
			for w := range o.watchers {
				w.update(func() { w.unserved = told })
			}
		}
	}
	if len(due) == 0 {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(l.live)) {
		r := l.live[id]
		model := r.request.GetModel()
		if why := due[model]; why != "" && r.phase == phaseQueued && r.held == 0 {
			l.giveUp(r, reasonNoWorker, &pb.FinishCommand{
				FinishReason: pb.FinishReason_FINISH_REASON_UNSERVED,
				Error:        fmt.Sprintf("model %q takes no requests: %s", model, why),
			})
		}
	}
}

// endTooLong ends the requests that have not been started and that no worker of the model can hold. The
// caller holds the lock.
func (l *leader) endTooLong(model string) {
	serves := l.models[model]
	for _, id := range slices.Sorted(maps.Keys(l.live)) {
		r := l.live[id]
		room := serves.room(r.request.GetTenant())
		if r.request.GetModel() == model && r.phase == phaseQueued && r.held == 0 && serves.maxTokens > 0 && r.longest() > room {
			l.finish(r, &pb.FinishCommand{
				FinishReason: pb.FinishReason_FINISH_REASON_UNSERVED,
				Error:        fmt.Sprintf("prompt and max_tokens may come to %d tokens, and no worker of model %q holds more than %d any more", r.longest(), model, room),
			})
		}
	}
}

// refusals is what gateways are told of the models whose requests are refused. The caller holds the lock.
func (l *leader) refusals() *pb.Unserved {
	out := &pb.Unserved{}
	for _, name := range slices.Sorted(maps.Keys(l.refusing)) {
		out.Models = append(out.Models, &pb.UnservedModel{Name: name, Reason: l.refusing[name]})
	}
	return out
}
