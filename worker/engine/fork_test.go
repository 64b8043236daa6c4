package engine

import (
	"fmt"
	"strings"
	"testing"

	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// TestNoForkOfAParentThatWentOn: a choice whose constraint has to be worked out, while its sibling that did the
// prompt goes on, gets blocks of its own: the sibling's hold the sibling's tokens by now, at every place in a
// block.
func TestNoForkOfAParentThatWentOn(t *testing.T) {
	// What may follow differs after each letter, so that the second choice's has to be worked out too.
	var after []string
	for c := 'a'; c <= 'z'; c++ {
		after = append(after, fmt.Sprintf("%c[^%c]{14}", c, c))
	}
	went := 0
	for length := 4; length <= 8; length++ {
		for ahead := 1; ahead <= 6; ahead++ {
			r := newRig(t, Settings{Blocks: 48, BlockTokens: 4, MaxSequences: 4}, func(_ *enginetest.Config, m *Model) { m.EOS = []int32{100} })
			var late *study
			r.p.study = func(x *study) {
				if x.seq.choice == 1 && late == nil {
					late = x
					return
				}
				x.do()
				r.p.learn(x)
			}
			one, seed := float32(1), uint64(length*10+ahead)
			q := ask("q", prompt(1, length), 20, matching(strings.Join(after, "|")))
			q.Sampling.Temperature, q.Sampling.Seed, q.Sampling.N = &one, &seed, 2
			beside := ask("beside", prompt(2, 5), 60) // so that each step has a row
			r.add(beside, q)
			for n := 0; late == nil || late.seq.choices[0].generated() <= ahead; n++ {
				if r.step(); n > 100 {
					t.Fatalf("the first choice does not go on: %s", r.state())
				}
			}
			if late.seq.generated() == 1 {
				went++
			}
			late.do()
			r.p.learn(late)
			r.finish()
			r.want(q)
			r.want(beside)
		}
	}
	if went == 0 {
		t.Error("no first choice went on without the second")
	}
}
