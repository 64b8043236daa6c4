package tier

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/quire-serve/quire/kvcache"
)

// DiskSettings are what a [Disk] is made of.
type DiskSettings struct {
	Dir       string // its own folder: files named like blocks in it are read and removed
	PageBytes int
	Layout    Layout
	MaxBytes  int64 // of all files together
	// TenantBytes bounds single tenants; 0, or a tenant past the end, is no bound.
	TenantBytes []int64
}

// DiskStats are a disk tier's figures since it was opened, Pages and Bytes excepted.
type DiskStats struct {
	Pages     int
	Bytes     int64
	Damaged   int64 // files that did not match their checksums, or could not be read
	Foreign   int64 // files of another layout or version, removed when the tier was opened
	Evictions int64
	Stuck     int64 // files that could not be removed
}

// Disk is a folder of block files, one a page, which survives restarts. A file is written under
// another name and renamed, and not synced: what a crash leaves half done its checksum tells.
//
// One goroutine at a time calls Put and Get; any may call the others, which touch no file.
type Disk struct {
	s DiskSettings

	mu    sync.Mutex
	lru   lru
	max   int // pages
	stats DiskStats
}

// OpenDisk opens or makes the folder and reads the header of every block in it. Files that this
// tier cannot use are removed; oldest files count as least recently used.
func OpenDisk(s DiskSettings) (*Disk, error) {
	if s.PageBytes < 1 {
		return nil, fmt.Errorf("tier: PageBytes is %d, must be positive", s.PageBytes)
	}
	file := int64(s.PageBytes) + headerBytes
	if s.MaxBytes < file {
		return nil, fmt.Errorf("tier: MaxBytes is %d, must hold at least one file of %d bytes", s.MaxBytes, file)
	}
	limits := make([]int, len(s.TenantBytes))
	for i, n := range s.TenantBytes {
		if n != 0 && n < file {
			return nil, fmt.Errorf("tier: TenantBytes[%d] is %d, must be 0 or hold at least one file of %d bytes", i, n, file)
		}
		limits[i] = int(n / file)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("tier: %w", err)
	}
	d := &Disk{s: s, max: int(min(s.MaxBytes/file, 1<<31)), lru: newLRU(limits, 0)}
	if err := d.scan(); err != nil {
		return nil, err
	}
	return d, nil
}

const suffix = ".kv"

func (d *Disk) path(h kvcache.Hash) string {
	name := h.String()
	return filepath.Join(d.s.Dir, name[:2], name+suffix)
}

// scan fills the list with what a former process left.
func (d *Disk) scan() error {
	type found struct {
		it      *item
		written int64 // nanoseconds
	}
	var list []found
	err := filepath.WalkDir(d.s.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.Type().IsRegular() {
			return nil
		}
		name := e.Name()
		if strings.HasSuffix(name, suffix+".tmp") {
			return os.Remove(path)
		}
		raw, err := hex.DecodeString(strings.TrimSuffix(name, suffix))
		if !strings.HasSuffix(name, suffix) || err != nil || len(raw) != len(kvcache.Hash{}) {
			return nil // not ours
		}
		h, size, written, err := readHeader(path)
		if err == nil && size != int64(d.s.PageBytes)+headerBytes {
			err = ErrDamaged
		}
		if err == nil {
			err = h.matches(kvcache.Hash(raw), d.s.Layout, d.s.PageBytes)
		}
		if err != nil {
			d.stats.Foreign++
			return os.Remove(path)
		}
		list = append(list, found{&item{hash: h.hash, parent: h.parent, tenant: h.tenant}, written})
		return nil
	})
	if err != nil {
		return fmt.Errorf("tier: %w", err)
	}
	slices.SortFunc(list, func(a, b found) int {
		if a.written != b.written {
			return int(min(max(a.written-b.written, -1), 1))
		}
		return slices.Compare(a.it.hash[:], b.it.hash[:])
	})
	for _, f := range list {
		for _, old := range d.makeRoom(f.it.tenant) {
			d.discard(old)
		}
		d.lru.add(f.it)
	}
	return nil
}

func readHeader(path string) (h header, size, written int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return h, 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return h, 0, 0, err
	}
	var buf [headerBytes]byte
	if _, err := io.ReadFull(f, buf[:]); err != nil {
		return h, 0, 0, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	h, err = decode(buf[:])
	return h, info.Size(), info.ModTime().UnixNano(), err
}

// Has reports whether the page is there, by the index: its file is checked when it is read.
func (d *Disk) Has(h kvcache.Hash) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lru.items[h] != nil
}

// Put writes a page and returns the hashes that had to go for it. One that is there already stays.
func (d *Disk) Put(h, parent kvcache.Hash, tenant int, page []byte) (evicted []kvcache.Hash, err error) {
	if len(page) != d.s.PageBytes {
		return nil, fmt.Errorf("tier: page of %d bytes, want %d", len(page), d.s.PageBytes)
	}
	d.mu.Lock()
	it := d.lru.items[h]
	if it != nil {
		d.lru.touch(it)
		d.mu.Unlock()
		return nil, nil
	}
	evicted = d.makeRoom(tenant)
	d.mu.Unlock()
	for _, old := range evicted {
		d.discard(old)
	}

	var head [headerBytes]byte
	hd := header{tenant: tenant, layout: d.s.Layout, hash: h, parent: parent, pageBytes: uint64(len(page)), sum: crc32.Checksum(page, castagnoli)}
	hd.encode(&head)
	if err := d.write(d.path(h), head[:], page); err != nil {
		return evicted, fmt.Errorf("tier: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lru.items[h] == nil {
		d.lru.add(&item{hash: h, parent: parent, tenant: tenant})
	}
	return evicted, nil
}

func (d *Disk) write(path string, parts ...[]byte) (err error) {
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		f, err = os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	}
	if err != nil {
		return err
	}
	for _, part := range parts {
		if err == nil {
			_, err = f.Write(part)
		}
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(temp))
	}
	return err
}

// discard removes the file of a page that is no longer in the index. One that cannot be removed
// is counted; it takes part again when the tier is next opened.
func (d *Disk) discard(h kvcache.Hash) {
	if err := os.Remove(d.path(h)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.mu.Lock()
		d.stats.Stuck++
		d.mu.Unlock()
	}
}

// Get reads a page into dst and returns its parent. A page that is not there, or whose file is damaged and has now been
// removed, is reported as not found.
func (d *Disk) Get(h kvcache.Hash, dst []byte) (parent kvcache.Hash, found bool) {
	d.mu.Lock()
	it := d.lru.items[h]
	if it != nil {
		d.lru.touch(it)
	}
	d.mu.Unlock()
	if it == nil {
		return kvcache.Hash{}, false
	}
	if err := d.read(h, dst); err != nil {
		d.mu.Lock()
		if d.lru.items[h] == it {
			d.lru.remove(it)
		}
		d.stats.Damaged++
		d.mu.Unlock()
		d.discard(h)
		return kvcache.Hash{}, false
	}
	return it.parent, true
}

func (d *Disk) read(h kvcache.Hash, dst []byte) error {
	f, err := os.Open(d.path(h))
	if err != nil {
		return err
	}
	defer f.Close()
	return readPage(f, h, d.s.Layout, dst)
}

// readPage reads one block file to its end and checks everything that it says.
func readPage(r io.Reader, want kvcache.Hash, layout Layout, dst []byte) error {
	var buf [headerBytes + 1]byte
	if _, err := io.ReadFull(r, buf[:headerBytes]); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	h, err := decode(buf[:headerBytes])
	if err != nil {
		return err
	}
	if err := h.matches(want, layout, len(dst)); err != nil {
		return err
	}
	if _, err := io.ReadFull(r, dst); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if n, _ := r.Read(buf[headerBytes:]); n != 0 {
		return fmt.Errorf("%w: longer than its header says", ErrDamaged)
	}
	if crc32.Checksum(dst, castagnoli) != h.sum {
		return fmt.Errorf("%w: page checksum", ErrDamaged)
	}
	return nil
}

// makeRoom takes pages out of the index until one more of tenant fits; the caller removes their
// files. The lock is held, or not needed yet.
func (d *Disk) makeRoom(tenant int) (evicted []kvcache.Hash) {
	for d.lru.full(tenant) || len(d.lru.items) >= d.max {
		it := d.lru.oldest()
		if d.lru.full(tenant) {
			it = d.lru.oldestOf(tenant)
		}
		d.lru.remove(it)
		d.stats.Evictions++
		evicted = append(evicted, it.hash)
	}
	return evicted
}

// Stats returns the tier's figures.
func (d *Disk) Stats() DiskStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stats
	s.Pages = len(d.lru.items)
	s.Bytes = int64(s.Pages) * (int64(d.s.PageBytes) + headerBytes)
	return s
}

// each calls f for every page.
func (d *Disk) each(f func(h, parent kvcache.Hash)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, it := range d.lru.items {
		f(it.hash, it.parent)
	}
}
