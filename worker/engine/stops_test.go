package engine

import (
	"testing"

	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/tiny"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestTextStopsReadWhatClientsRead: stop strings are found in the text that the request's client gets.
func TestTextStopsReadWhatClientsRead(t *testing.T) {
	spec, err := model.OpenBytes(tiny.Name, tiny.GGUF())
	if err != nil {
		t.Fatal(err)
	}
	vocab := spec.Tokenizer
	ids := vocab.Encode(nil, "one<|im_end|>two", true)
	end, ok := vocab.SpecialID("<|im_end|>")
	if !ok {
		t.Fatal("no end of turn")
	}
	one := 0
	for ids[one] != end {
		one++
	}
	for _, c := range []struct {
		p     *pb.SamplingParams
		found bool
	}{
		{&pb.SamplingParams{Stop: []string{"e<|im_end|>t"}, ShowSpecialTokens: true}, true},
		{&pb.SamplingParams{Stop: []string{"e<|im_end|>t"}}, false},
		{&pb.SamplingParams{Stop: []string{"et"}}, true},
		{&pb.SamplingParams{Stop: []string{"et"}, ShowSpecialTokens: true}, false},
		{&pb.SamplingParams{Stop: []string{"one"}, MinTokens: int32(one)}, false},
		{&pb.SamplingParams{Stop: []string{"et"}, MinTokens: int32(one)}, true},
	} {
		finder := TextStops(vocab)(c.p)
		found := false
		for _, id := range ids {
			stop, hit := finder.Push(id)
			if hit && stop != c.p.Stop[0] {
				t.Errorf("%v: stop %q", c.p, stop)
			}
			if found = hit; found {
				break
			}
		}
		if found != c.found {
			t.Errorf("%v: found %t, want %t", c.p, found, c.found)
		}
	}
}
