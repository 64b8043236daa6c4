package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// stopped is the data folder of a node that was stopped, with several segments and two snapshots.
type stopped struct {
	dir, want string
	files     []string // below dir
	last      uint64
}

const smallSegments = 32 << 10

func stopNode(t testing.TB, store Store) stopped {
	t.Helper()
	s := stopped{dir: t.TempDir()}
	sm := &tape{}
	n, err := Open(Settings{NodeID: "a", DataDir: s.dir, Store: store, Logger: quiet, segmentBytes: smallSegments, HeartbeatTimeout: 20 * time.Millisecond}, sm)
	if err != nil {
		t.Fatal(err)
	}
	for !<-n.Leadership() {
	}
	for i := range 120 {
		if _, err := propose(n, fmt.Sprint(i, strings.Repeat("x", 1000))); err != nil {
			t.Fatal(err)
		}
		if i == 40 || i == 80 {
			if err := n.Snapshot(); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.last, s.want = n.LastIndex()+1, sm.String() // Close appends a barrier.
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(filepath.Join(s.dir, raftDir), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			s.files = append(s.files, strings.TrimPrefix(path, s.dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// harm damages one file of a copy of the folder and says how.
func (s stopped) harm(t *testing.T, rng *rand.Rand) (dir, how string) {
	dir = filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	name := s.files[rng.IntN(len(s.files))]
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	written := len(strings.TrimRight(string(data), "\x00")) // The rest of a segment is empty.
	switch rng.IntN(12) {
	case 0:
		how, err = "without "+name, os.Remove(path)
	case 1:
		n := rng.IntN(len(data) + 1)
		how, err = fmt.Sprintf("%s cut to %d bytes", name, n), os.Truncate(path, int64(n))
	case 2:
		clear(data)
		how, err = name+" filled with zeros", os.WriteFile(path, data, 0o600)
	case 3:
		how, err = name+" emptied", os.Truncate(path, 0)
	default:
		at, bit := rng.IntN(min(len(data), written+16)), rng.IntN(8)
		data[at] ^= 1 << bit
		how, err = fmt.Sprintf("%s with bit %d of byte %d flipped", name, bit, at), os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, how
}

// TestDamageIsNeverApplied damages the files of a stopped node in many ways. A node that is alone comes
// back with all that it had, or says what is damaged; one that has others comes back with all that it
// had, or with nothing.
func TestDamageIsNeverApplied(t *testing.T) {
	for _, store := range []Store{WAL, BoltDB} {
		s := stopNode(t, store)
		seed := time.Now().UnixNano()
		t.Logf("%s: seed %d", store, seed)
		rng := rand.New(rand.NewPCG(uint64(seed), 0))
		refused, repaired := 0, 0
		for range 100 {
			dir, how := s.harm(t, rng)
			settings := Settings{
				NodeID: "a", DataDir: dir, Store: store, Logger: quiet, segmentBytes: smallSegments, HeartbeatTimeout: 20 * time.Millisecond,
				Fatal: func(err error) { t.Errorf("%s: %s: stopped: %v", store, how, err) },
			}
			if rng.IntN(2) == 0 {
				refused += s.alone(t, settings, how)
			} else {
				repaired += s.withOthers(t, settings, how)
			}
		}
		t.Logf("%s: %d refused, %d repaired", store, refused, repaired)
		if refused == 0 || repaired == 0 {
			t.Errorf("%s: %d refused, %d repaired", store, refused, repaired)
		}
	}
}

func (s stopped) alone(t *testing.T, settings Settings, how string) (refused int) {
	sm := &tape{}
	n, err := Open(settings, sm)
	if err != nil {
		if damage := (*Damage)(nil); !errors.As(err, &damage) || !strings.Contains(err.Error(), "quire snapshot restore") {
			t.Errorf("%s: refused with %v", how, err)
		}
		return 1
	}
	for !<-n.Leadership() {
	}
	if err := barrier(n, 10*time.Second); err != nil {
		t.Errorf("%s: %v", how, err)
	}
	if sm.String() != s.want {
		t.Errorf("%s: the node came back with %d bytes of %d", how, len(sm.String()), len(s.want))
	}
	if err := n.Close(); err != nil {
		t.Errorf("%s: %v", how, err)
	}
	return 0
}

func (s stopped) withOthers(t *testing.T, settings Settings, how string) (repaired int) {
	settings.Await, settings.HeartbeatTimeout = true, time.Hour
	n, err := Open(settings, &tape{})
	if err != nil {
		t.Errorf("%s: %v", how, err)
		return 0
	}
	aside, _ := filepath.Glob(filepath.Join(settings.DataDir, asidePrefix+"*"))
	switch last := n.LastIndex(); {
	case last == 0 && len(aside) == 1 && len(n.Members()) == 0:
		repaired = 1
	case last != s.last || len(aside) != 0:
		t.Errorf("%s: the node came back with entries up to %d of %d, aside: %v", how, last, s.last, aside)
	}
	if err := n.Close(); err != nil {
		t.Errorf("%s: %v", how, err)
	}
	return repaired
}

// TestFoldersAsideAreBounded repairs the same folder again and again.
func TestFoldersAsideAreBounded(t *testing.T) {
	dir := t.TempDir()
	for range 4 {
		n, err := Open(Settings{NodeID: "a", DataDir: dir, Logger: quiet, Await: true, segmentBytes: smallSegments}, &tape{})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, raftDir, hardStateFile), 5); err != nil {
			t.Fatal(err)
		}
	}
	if aside, _ := filepath.Glob(filepath.Join(dir, asidePrefix+"*")); len(aside) != asideKept {
		t.Errorf("put aside: %v", aside)
	}
}

// TestDamageWhileRunningStopsTheNode: raft must not see it, and the folder is not used again.
func TestDamageWhileRunningStopsTheNode(t *testing.T) {
	dir := t.TempDir()
	var fatal error
	settings := Settings{NodeID: "a", DataDir: dir, Logger: quiet, Await: true, segmentBytes: smallSegments, Fatal: func(err error) { fatal = err }}
	n := open(t, settings, &tape{})
	store := &verifiedLogs{LogStore: n.files.Logs, hard: n.files.hard, damaged: n.damaged}
	if err := store.StoreLog(&raft.Log{Index: 1, Term: 1, Data: []byte("whole")}); err != nil {
		t.Fatal(err)
	}
	if err := n.files.Logs.StoreLog(&raft.Log{Index: 2, Term: 1, Data: []byte("damaged"), Extensions: make([]byte, sumBytes)}); err != nil {
		t.Fatal(err)
	}
	var entry raft.Log
	if err := store.GetLog(1, &entry); err != nil || string(entry.Data) != "whole" || entry.Extensions != nil || fatal != nil {
		t.Errorf("a whole entry: %v, %v, %v", entry, err, fatal)
	}
	if err := store.GetLog(3, &entry); !errors.Is(err, raft.ErrLogNotFound) || fatal != nil {
		t.Errorf("an entry that is not there: %v, %v", err, fatal)
	}
	if err := store.GetLog(2, &entry); err == nil || fatal == nil || !strings.Contains(fatal.Error(), "entry 2 of the log") {
		t.Errorf("a damaged entry: %v, stopped with %v", err, fatal)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = open(t, settings, &tape{})
	if aside, _ := filepath.Glob(filepath.Join(dir, asidePrefix+"*")); len(aside) != 1 || n.LastIndex() != 0 {
		t.Errorf("after a restart: aside %v, last entry %d", aside, n.LastIndex())
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestHardStateOutlivesATornWrite: a write that was cut short leaves the record before or the new one.
func TestHardStateOutlivesATornWrite(t *testing.T) {
	dir := t.TempDir()
	h, err := openHardState(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, hardStateFile)
	term := func() uint64 {
		t.Helper()
		h, err := openHardState(dir)
		if err != nil {
			t.Fatal(err)
		}
		n, err := h.GetUint64([]byte("CurrentTerm"))
		if err := errors.Join(err, h.Close()); err != nil {
			t.Fatal(err)
		}
		return n
	}
	var files [][]byte
	for i := range uint64(2) {
		if err := h.SetUint64([]byte("CurrentTerm"), i+1); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, data)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	for at := 0; at <= len(files[1]); at += 128 {
		for _, torn := range [][]byte{
			append(files[1][:at:at], files[0][at:]...), // the beginning was written
			append(files[0][:at:at], files[1][at:]...), // the end was
		} {
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := term(); got != 1 && got != 2 {
				t.Errorf("torn at byte %d: term %d", at, got)
			}
		}
	}
}

// BenchmarkAcknowledge shows what the note costs beside the log's own write: write after write, and with
// the millisecond between them that the scheduler leaves.
func BenchmarkAcknowledge(b *testing.B) {
	for _, pause := range []time.Duration{0, time.Millisecond} {
		for _, noted := range []bool{false, true} {
			b.Run(fmt.Sprintf("pause=%v/noted=%t", pause, noted), func(b *testing.B) {
				files, err := OpenFiles(b.TempDir(), WAL, newLogger(quiet, hclog.Off))
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _ = files.Close() }()
				hard := files.hard
				if !noted {
					hard = newHardState()
				}
				store := &verifiedLogs{LogStore: files.Logs, hard: hard}
				data := make([]byte, 1024)
				var took time.Duration
				for i := range b.N {
					<-time.After(pause)
					began := time.Now()
					if err := store.StoreLog(&raft.Log{Index: uint64(i + 1), Term: 1, Data: data}); err != nil {
						b.Fatal(err)
					}
					took += time.Since(began)
				}
				b.ReportMetric(float64(took.Microseconds())/float64(b.N), "µs/write")
			})
		}
	}
}
