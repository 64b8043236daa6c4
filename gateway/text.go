package gateway

import (
	"slices"

	"github.com/quire-serve/quire/model/tokenizer"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// assembler turns one choice's tokens into the text that the client gets: whole UTF-8 characters,
// nothing of a stop string or stop token, and nothing that may yet become part of a stop string. What
// it has returned after some tokens depends on those alone, not on the steps they came in: a client
// that comes back with a count of tokens is continued to the byte.
type assembler struct {
	vocab   *tokenizer.Tokenizer
	params  *pb.SamplingParams
	stream  *tokenizer.Stream
	stops   *tokenizer.StopMatcher // nil without stop strings
	seen    int
	stopped bool
}

func newAssembler(vocab *tokenizer.Tokenizer, params *pb.SamplingParams, skipSpecial bool) *assembler {
	a := &assembler{vocab: vocab, params: params, stream: vocab.NewStream(skipSpecial)}
	if len(params.Stop) > 0 {
		a.stops = tokenizer.NewStopMatcher(params.Stop)
	}
	return a
}

// push takes the next tokens and, with the last of them, why the choice ended. It returns the text
// they complete and how many of the tokens belong to the answer: all but a final stop token.
func (a *assembler) push(ids []int32, finish pb.FinishReason) (text string, kept int) {
	kept = len(ids)
	// Stop conditions count only from min_tokens on; the text before is passed by the matcher.
	free := min(max(int(a.params.MinTokens)-a.seen, 0), len(ids))
	if i := slices.IndexFunc(ids[free:], a.ends); i >= 0 {
		kept = free + i // its end, even if we are not told yet
	}
	a.seen += len(ids)
	if free > 0 {
		text = a.stream.Push(ids[:free]...)
	}
	if kept > free {
		text += a.match(a.stream.Push(ids[free:kept]...))
	}
	if finish != pb.FinishReason_FINISH_REASON_UNSPECIFIED {
		text += a.match(a.stream.Flush())
		if a.stops != nil && !a.stopped {
			text += a.stops.Flush()
		}
	}
	return text, kept
}

// match passes text through the stop strings.
func (a *assembler) match(text string) string {
	if a.stops == nil || text == "" {
		return text
	}
	if a.stopped {
		return ""
	}
	text, a.stopped, _ = a.stops.Push(text)
	return text
}

// ends reports whether id is a token that ends a choice.
func (a *assembler) ends(id int32) bool {
	return !a.params.IgnoreEos && a.vocab.IsEOG(id) || slices.Contains(a.params.StopTokenIds, id)
}
