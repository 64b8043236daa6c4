package engine

import "github.com/quire-serve/quire/model/tokenizer"

// TextStops finds stop strings in the text that t gives a choice's tokens, special tokens left out,
// as the front door reads it.
func TextStops(t *tokenizer.Tokenizer) func(stops []string) StopFinder {
	return func(stops []string) StopFinder {
		return &textStops{stream: t.NewStream(true), matcher: tokenizer.NewStopMatcher(stops), stops: stops}
	}
}

type textStops struct {
	stream  *tokenizer.Stream
	matcher *tokenizer.StopMatcher
	stops   []string
}

func (f *textStops) Push(token int32, search bool) (stop string, found bool) {
	text := f.stream.Push(token)
	if !search {
		return "", false
	}
	if _, stopped, which := f.matcher.Push(text); stopped {
		return f.stops[which], true
	}
	return "", false
}
