package tier

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quire-serve/quire/kvcache"
)

const pageBytes = 256

func name(i int) (h kvcache.Hash) {
	binary.LittleEndian.PutUint64(h[:], uint64(i)+1)
	return h
}

// pageOf is the content that belongs to a hash.
func pageOf(h kvcache.Hash) []byte { return bytes.Repeat(h[:], pageBytes/len(h)) }

func openDisk(t testing.TB, dir string, pages int, tenants ...int64) *Disk {
	t.Helper()
	for i := range tenants {
		tenants[i] *= pageBytes + headerBytes
	}
	d, err := OpenDisk(DiskSettings{Dir: dir, PageBytes: pageBytes, Layout: testLayout, MaxBytes: int64(pages) * (pageBytes + headerBytes), TenantBytes: tenants})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func put(t testing.TB, d *Disk, tenant int, is ...int) (evicted []kvcache.Hash) {
	t.Helper()
	for _, i := range is {
		gone, err := d.Put(name(i), name(i-1), tenant, pageOf(name(i)))
		if err != nil {
			t.Fatal(err)
		}
		evicted = append(evicted, gone...)
	}
	return evicted
}

// wantPages checks that exactly these pages can be read, and are right.
func wantPages(t testing.TB, d *Disk, among int, want ...int) {
	t.Helper()
	dst := make([]byte, pageBytes)
	for i := range among {
		has := false
		for _, w := range want {
			has = has || w == i
		}
		if d.Has(name(i)) != has {
			t.Fatalf("page %d: there is %t, want %t", i, !has, has)
		}
		if !has {
			continue
		}
		parent, found := d.Get(name(i), dst)
		if !found || parent != name(i-1) || !bytes.Equal(dst, pageOf(name(i))) {
			t.Fatalf("page %d: found %t, parent %v, %x", i, found, parent, dst[:16])
		}
	}
	if s := d.Stats(); s.Pages != len(want) || s.Bytes != int64(len(want))*(pageBytes+headerBytes) {
		t.Fatalf("%+v, want %d pages", s, len(want))
	}
}

func TestDiskSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	put(t, openDisk(t, dir, 4), 0, 1, 2, 3)
	// Age decides who goes first after a restart.
	for i, age := range map[int]int{1: 10, 2: 30, 3: 20} {
		d := &Disk{s: DiskSettings{Dir: dir}}
		at := time.Date(2026, 1, 1, 0, 0, 60-age, 0, time.UTC)
		if err := os.Chtimes(d.path(name(i)), at, at); err != nil {
			t.Fatal(err)
		}
	}
	d := openDisk(t, dir, 4)
	if evicted := put(t, d, 0, 4, 5); len(evicted) != 1 || evicted[0] != name(2) {
		t.Fatalf("evicted %v, want the oldest", evicted)
	}
	wantPages(t, d, 8, 1, 3, 4, 5)
	wantPages(t, openDisk(t, dir, 4), 8, 1, 3, 4, 5)
	if n := files(t, dir); n != 4 {
		t.Fatalf("%d files, want 4", n)
	}
	// A smaller quota is kept at once.
	if n := openDisk(t, dir, 2).Stats().Pages; n != 2 || files(t, dir) != 2 {
		t.Fatalf("%d pages and %d files, want 2", n, files(t, dir))
	}
}

func files(t testing.TB, dir string) int {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestDiskDropsDamage(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, 8)
	put(t, d, 0, 1, 2, 3, 4, 5)
	damage := func(i int, f func(data []byte) []byte) {
		data, err := os.ReadFile(d.path(name(i)))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.path(name(i)), f(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flip := func(at int) func([]byte) []byte {
		return func(data []byte) []byte { data[at] ^= 4; return data }
	}
	damage(1, flip(headerBytes+100))                                  // found when it is read
	damage(2, flip(20))                                               // found when the folder is
	damage(3, func(data []byte) []byte { return data[:len(data)-1] }) // likewise
	if err := os.Mkdir(filepath.Dir(d.path(name(6))), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(d.path(name(4)), d.path(name(6))); err != nil { // a file under another's name
		t.Fatal(err)
	}
	stranger := filepath.Join(dir, "README.kv")
	for _, path := range []string{d.path(name(5)) + ".tmp", stranger} {
		if err := os.WriteFile(path, []byte("half a page"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := openDisk(t, dir, 8)
	if s := again.Stats(); s.Foreign != 3 || s.Pages != 2 {
		t.Fatalf("%+v, want 3 files removed and 2 kept", s)
	}
	if _, found := again.Get(name(1), make([]byte, pageBytes)); found || again.Has(name(1)) {
		t.Fatal("a damaged page was handed out")
	}
	wantPages(t, again, 8, 5)
	if s := again.Stats(); s.Damaged != 1 {
		t.Fatalf("%+v, want 1 damaged", s)
	}
	if _, err := os.Stat(stranger); err != nil {
		t.Fatalf("a file that is none of ours: %v", err)
	}
	if n := files(t, dir); n != 1 {
		t.Fatalf("%d files are left, want 1", n)
	}
	// Files of another layout are of no use.
	other, err := OpenDisk(DiskSettings{Dir: dir, PageBytes: pageBytes, Layout: Layout{9}, MaxBytes: 1 << 20})
	if err != nil || other.Stats().Pages != 0 || files(t, dir) != 0 {
		t.Fatalf("%v, %+v: want an empty tier", err, other.Stats())
	}
}

func TestDiskQuotas(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir, 5, 0, 2)
	put(t, d, 0, 1)
	if evicted := put(t, d, 1, 2, 3, 4); len(evicted) != 1 || evicted[0] != name(2) {
		t.Fatalf("evicted %v: the tenant over its quota must lose its own oldest", evicted)
	}
	put(t, d, 0, 5, 6)
	if evicted := put(t, d, 0, 7); len(evicted) != 1 || evicted[0] != name(1) {
		t.Fatalf("evicted %v: want the oldest of all", evicted)
	}
	// The quota outlives the process: the header knows the tenant.
	if evicted := put(t, openDisk(t, dir, 5, 0, 2), 1, 8); len(evicted) != 1 || evicted[0] != name(3) {
		t.Fatalf("evicted %v after a restart", evicted)
	}
}

func TestDiskErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for says, s := range map[string]DiskSettings{
		"PageBytes":      {Dir: t.TempDir(), MaxBytes: 1000},
		"MaxBytes":       {Dir: t.TempDir(), PageBytes: 1000, MaxBytes: 1000},
		"TenantBytes[1]": {Dir: t.TempDir(), PageBytes: 100, MaxBytes: 1000, TenantBytes: []int64{0, 100}},
		file:             {Dir: file, PageBytes: 100, MaxBytes: 1000},
	} {
		if _, err := OpenDisk(s); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not name %s", err, says)
		}
	}
	d := openDisk(t, t.TempDir(), 2)
	if _, err := d.Put(name(1), name(0), 0, make([]byte, 3)); err == nil {
		t.Error("a short page was written")
	}
	// The folder goes away under it: an error, and nothing is promised.
	if err := os.RemoveAll(d.s.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.s.Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Put(name(1), name(0), 0, pageOf(name(1))); err == nil || d.Has(name(1)) {
		t.Errorf("%v, has %t: want an error and no page", err, d.Has(name(1)))
	}
}
