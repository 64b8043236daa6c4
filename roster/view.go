package roster

import (
	"errors"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// ErrGap means that news do not follow what is known: the stream must begin anew, from Known.
var ErrGap = errors.New("the news of the workers do not follow what is known")

// View is a copy of a Roster, made from its news. The zero View knows nothing. It is not safe for concurrent
// use.
type View struct {
	at      *pb.RosterPosition
	workers map[string]*pb.WorkerInfo
	// parts have come of news of which the last one has not.
	parts []*pb.RosterNews
}

// Known is what the view knows, for a stream that begins; nil if that is nothing. Parts of the stream before
// count no more.
func (v *View) Known() *pb.RosterPosition {
	v.parts = nil
	return v.at
}

// Workers lists the set by id.
func (v *View) Workers() []*pb.WorkerInfo {
	list := make([]*pb.WorkerInfo, 0, len(v.workers))
	for _, id := range slices.Sorted(maps.Keys(v.workers)) {
		list = append(list, v.workers[id])
	}
	return list
}

// Apply takes in a part of the news, in the order in which they came. It returns who came or changed and who
// left; nothing before the last part.
func (v *View) Apply(news *pb.RosterNews) (came []*pb.WorkerInfo, left []string, err error) {
	if news == nil {
		return nil, nil, nil
	}
	if begins := news.GetWhole() || news.GetAfter() != nil; begins != (len(v.parts) == 0) ||
		!news.GetWhole() && begins && !proto.Equal(news.GetAfter(), v.at) {
		return nil, nil, ErrGap
	}
	v.parts = append(v.parts, news)
	if news.GetAt() == nil {
		return nil, nil, nil
	}
	parts := v.parts
	v.parts, v.at = nil, news.GetAt()
	before := v.workers
	if parts[0].GetWhole() {
		v.workers = map[string]*pb.WorkerInfo{}
	}
	for _, part := range parts {
		for _, w := range part.GetWorkers() {
			if !proto.Equal(before[w.GetId()], w) {
				came = append(came, w)
			}
			v.workers[w.GetId()] = w
		}
		for _, id := range part.GetLeft() {
			if v.workers[id] != nil {
				delete(v.workers, id)
				left = append(left, id)
			}
		}
	}
	if parts[0].GetWhole() {
		for _, id := range slices.Sorted(maps.Keys(before)) {
			if v.workers[id] == nil {
				left = append(left, id)
			}
		}
	}
	return came, left, nil
}
