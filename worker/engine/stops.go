package engine

import (
	"github.com/quire-serve/quire/model/tokenizer"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TextStops finds stop strings in the text that t gives a choice's tokens, as its client reads it.
func TextStops(t *tokenizer.Tokenizer) func(p *pb.SamplingParams) StopFinder {
	return func(p *pb.SamplingParams) StopFinder {
		return &textStops{text: t.NewVisible(p.ShowSpecialTokens, p.Stop, int(p.MinTokens), p.IncludeStop), stops: p.Stop}
	}
}

type textStops struct {
	text  *tokenizer.Visible
	stops []string
}

func (f *textStops) Push(token int32) (stop string, found bool) {
	if _, which := f.text.Push(token); which >= 0 {
		return f.stops[which], true
	}
	return "", false
}
