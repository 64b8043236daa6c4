package roster

import (
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const (
	// leastRemembered is how many changes are remembered at least: beyond that as many as there are workers,
	// because to repeat more would take more than the whole set.
	leastRemembered = 1024
	// partBytes bounds the workers in one part, which has one worker at least.
	partBytes = 1 << 20
)

// Roster is a set of workers that knows what has changed. It is safe for concurrent use. The infos in it are
// shared: nobody may change them.
type Roster struct {
	id uint64

	mu      sync.Mutex
	workers map[string]*pb.WorkerInfo
	// changed are the ids of those that came, changed or left, in order; forgotten changes came before.
	changed   []string
	forgotten uint64
}

// New returns an empty set. No other one may have its id.
func New(id uint64) *Roster {
	return &Roster{id: id, workers: map[string]*pb.WorkerInfo{}}
}

// Put has a worker in the set, as it is now. It reports whether that is news.
func (r *Roster) Put(w *pb.WorkerInfo) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if proto.Equal(r.workers[w.GetId()], w) {
		return false
	}
	r.workers[w.GetId()] = w
	r.change(w.GetId())
	return true
}

// Remove takes a worker out of the set. It reports whether that is news.
func (r *Roster) Remove(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.workers[id] == nil {
		return false
	}
	delete(r.workers, id)
	r.change(id)
	return true
}

func (r *Roster) change(id string) {
	r.changed = append(r.changed, id)
	if remember := max(leastRemembered, len(r.workers)); len(r.changed) >= 2*remember {
		r.forgotten += uint64(len(r.changed) - remember)
		r.changed = slices.Clone(r.changed[len(r.changed)-remember:])
	}
}

// Since is what has changed since what somebody knows, in parts; none if that is nothing.
func (r *Roster) Since(known *pb.RosterPosition) []*pb.RosterNews {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := &pb.RosterPosition{Roster: r.id, Changes: r.forgotten + uint64(len(r.changed))}
	first := &pb.RosterNews{After: known}
	var ids []string
	switch {
	case known.GetRoster() != r.id || known.GetChanges() < r.forgotten || known.GetChanges() > now.Changes:
		first = &pb.RosterNews{Whole: true}
		ids = slices.Collect(maps.Keys(r.workers))
	case known.GetChanges() == now.Changes:
		return nil
	default:
		ids = slices.Clone(r.changed[known.GetChanges()-r.forgotten:])
	}
	slices.Sort(ids)
	parts := []*pb.RosterNews{first}
	size := 0
	for _, id := range slices.Compact(ids) {
		w := r.workers[id]
		more := len(id)
		if w != nil {
			more = proto.Size(w)
		}
		if size > 0 && size+more > partBytes {
			parts, size = append(parts, &pb.RosterNews{}), 0
		}
		size += more
		part := parts[len(parts)-1]
		if w != nil {
			part.Workers = append(part.Workers, w)
		} else {
			part.Left = append(part.Left, id)
		}
	}
	parts[len(parts)-1].At = now
	return parts
}
