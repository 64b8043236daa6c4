package state

import (
	"bytes"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// FuzzApply: whatever an entry holds, it is applied whole or refused without a trace, twice the same,
// and what it leaves survives a snapshot.
func FuzzApply(f *testing.F) {
	f.Add(encode(f, 1, submit("a", 1), assign("a", "w", 1, 1), finish("a", pb.FinishReason_FINISH_REASON_STOP)))
	f.Add(encode(f, 2, join("w"), requeue("z", "w"), leave("w")))
	f.Add(encode(f, 2, progress("b", news(0, 0, 0, 1, 2), news(0, 1, 1, 2, 3)), adopt("b", "h"), finish("b", 1)))
	f.Add([]byte{0x12, 0x02, 0x0a, 0x00})
	f.Add([]byte{0x12, 0x04, 0x22, 0x02, 0x10, 0x01})
	base := encode(f, 1, join("v"), submit("b", 1, 2), assign("b", "v", 1, 1), progress("b", news(0, 0, 0, 1)), submit("c", 3))
	f.Fuzz(func(t *testing.T, data []byte) {
		one, two := New(), New()
		for _, s := range []*Store{one, two} {
			if _, err := s.Apply(1, 1, base); err != nil {
				t.Fatal(err)
			}
		}
		before := snapshot(t, one)
		results, err := one.Apply(2, 1, data)
		if err != nil && !bytes.Equal(snapshot(t, one), before) {
			t.Fatalf("refused with %v, but the state changed", err)
		}
		again, errAgain := two.Apply(2, 1, data)
		if (err == nil) != (errAgain == nil) || len(results) != len(again) || !bytes.Equal(snapshot(t, one), snapshot(t, two)) {
			t.Fatalf("applied twice to the same state: %v, %v", err, errAgain)
		}
		restored := New()
		if err := restored.Restore(bytes.NewReader(snapshot(t, one))); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(snapshot(t, restored), snapshot(t, one)) {
			t.Fatal("restore(persist(x)) is not x")
		}
	})
}

// FuzzRestore: damaged snapshots are refused or mean something that can be written again.
func FuzzRestore(f *testing.F) {
	l := &log{t: f, store: New()}
	l.apply(1, join("w"), submit("a", 1, 2), submit("b", 3), finish("b", pb.FinishReason_FINISH_REASON_LENGTH))
	l.apply(2, assign("a", "w", 1, 1), progress("a", news(0, 0, 0, 5)), adopt("a", "h"))
	f.Add(snapshot(f, l.store))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := New()
		if s.Restore(bytes.NewReader(data)) != nil {
			return
		}
		again := New()
		if err := again.Restore(bytes.NewReader(snapshot(t, s))); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(snapshot(t, again), snapshot(t, s)) {
			t.Fatal("restore(persist(x)) is not x")
		}
		if s.View().Index() == 1<<64-1 {
			return
		}
		if _, err := s.Apply(s.View().Index()+1, 1, encode(t, 1<<40, submit("fresh", 1))); err != nil {
			t.Fatal(err)
		}
	})
}
