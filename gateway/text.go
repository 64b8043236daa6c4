package gateway

import (
	"slices"

	"github.com/quire-serve/quire/model/tokenizer"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// assembler turns one choice's tokens into the text that the client gets: whole UTF-8 characters,
// nothing of a stop string or stop token unless they are to be part of it, and nothing that may yet become
// part of a stop string. What
// it has returned after some tokens depends on those alone, not on the steps they came in: a client
// that comes back with a count of tokens is continued to the byte.
type assembler struct {
	vocab  *tokenizer.Tokenizer
	params *pb.SamplingParams
	text   *tokenizer.Visible
	// spelled are the control tokens that stop strings spell.
	spelled []int32
	seen    int
	ended   bool
}

func newAssembler(vocab *tokenizer.Tokenizer, params *pb.SamplingParams) *assembler {
	a := &assembler{vocab: vocab, params: params, text: vocab.NewVisible(params.ShowSpecialTokens, params.Stop, int(params.MinTokens), params.IncludeStop)}
	for _, s := range params.Stop {
		if id, ok := vocab.SpecialID(s); ok {
			a.spelled = append(a.spelled, id)
		}
	}
	return a
}

// push takes the next tokens and, with the last of them, why the choice ended. It returns the text
// they complete and how many of the tokens belong to the answer: all but a final stop token that is not
// to be part of it.
func (a *assembler) push(ids []int32, finish pb.FinishReason) (text string, kept int) {
	for ; kept < len(ids) && !a.ended; kept++ {
		id := ids[kept]
		// Its end, even if we are not told yet. Stop conditions count only from min_tokens on.
		if a.seen >= int(a.params.MinTokens) && a.ends(id) {
			a.ended = true
			if !a.params.IncludeStop {
				break
			}
		}
		a.seen++
		more, stop := a.text.Push(id)
		text += more
		a.ended = a.ended || stop >= 0
	}
	if finish != pb.FinishReason_FINISH_REASON_UNSPECIFIED {
		text += a.text.Flush()
	}
	return text, kept
}

// ends reports whether id is a token that ends a choice.
func (a *assembler) ends(id int32) bool {
	return !a.params.IgnoreEos && a.vocab.IsEOG(id) || slices.Contains(a.params.StopTokenIds, id) || slices.Contains(a.spelled, id)
}
