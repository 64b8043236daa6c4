package tier

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/quire-serve/quire/kvcache"
)

func newCache(t testing.TB, s Settings) *Cache {
	t.Helper()
	s.PageBytes = pageBytes
	c, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// store moves a page down; it reports whether the cache took it.
func store(c *Cache, tenant, i int) bool {
	page := c.Reserve(name(i), name(i-1), tenant)
	if page == nil {
		return false
	}
	copy(page, pageOf(name(i)))
	c.Commit(name(i), true)
	return true
}

// have reports which of the first n pages can be pinned, and that they are right.
func have(t testing.TB, c *Cache, n int) string {
	t.Helper()
	var s strings.Builder
	for i := range n {
		h := name(i)
		if host, _ := c.Match([]kvcache.Hash{h}); host == 0 {
			s.WriteByte('.')
			continue
		}
		page := c.Pin(h)
		if !bytes.Equal(page, pageOf(h)) {
			t.Fatalf("page %d has wrong content", i)
		}
		c.Unpin(h)
		s.WriteByte('x')
	}
	return s.String()
}

func wantHave(t testing.TB, c *Cache, want string) {
	t.Helper()
	if got := have(t, c, len(want)); got != want {
		t.Fatalf("in host memory: %s, want %s", got, want)
	}
}

func TestHostTier(t *testing.T) {
	c := newCache(t, Settings{Pages: 3})
	defer c.Close()
	for i := range 3 {
		store(c, 0, i)
	}
	if c.Reserve(name(1), name(0), 0) != nil {
		t.Fatal("a page was taken twice")
	}
	c.Pin(name(0)) // used now, and held
	store(c, 0, 3)
	store(c, 0, 4)
	wantHave(t, c, "x..xx")
	c.Pin(name(3))
	c.Pin(name(4))
	if store(c, 0, 5) || c.Stats().Refused != 1 {
		t.Fatal("a pinned page was evicted")
	}
	c.Unpin(name(3))
	// Filled in vain: the page is dropped.
	if c.Reserve(name(6), name(5), 0) == nil {
		t.Fatal("no room after Unpin")
	}
	if c.Pin(name(6)) != nil {
		t.Fatal("a page was handed out before it was filled")
	}
	c.Commit(name(6), false)
	wantHave(t, c, "x...x..")
	host, total := c.Match([]kvcache.Hash{name(0), name(4), name(3)})
	if host != 2 || total != 2 {
		t.Fatalf("match %d, %d, want 2, 2", host, total)
	}
}

func TestHostQuotas(t *testing.T) {
	c := newCache(t, Settings{Pages: 4, TenantPages: []int{0, 2}})
	defer c.Close()
	store(c, 0, 0)
	for i := range 3 {
		store(c, 1, 1+i)
	}
	wantHave(t, c, "x.xx")
	c.Pin(name(2))
	c.Pin(name(3))
	if store(c, 1, 4) {
		t.Fatal("the tenant got a third page")
	}
	if !store(c, 0, 5) {
		t.Fatal("another tenant got none")
	}
}

func TestChanges(t *testing.T) {
	c := newCache(t, Settings{Pages: 2})
	defer c.Close()
	for i := range 3 {
		store(c, 0, i)
	}
	var got strings.Builder
	for _, ch := range c.Changes(nil) {
		got.WriteString(ch.Kind.String() + " " + ch.Medium.String() + " " + ch.Hash.String()[:2] + " ")
	}
	if want := "stored host 01 stored host 02 removed host 01 stored host 03 "; got.String() != want {
		t.Fatalf("%q, want %q", got.String(), want)
	}
	if n := len(c.Changes(nil)); n != 0 {
		t.Fatalf("%d changes left", n)
	}
	for i := range 1000 {
		store(c, 0, 10+i)
	}
	all := c.Changes(nil)
	if len(all) != 4 || all[0].Kind != kvcache.Cleared || all[2].Kind != kvcache.Stored || all[3].Kind != kvcache.Stored {
		t.Fatalf("%d changes, want two cleared and two stored", len(all))
	}
}

// TestBehindAndAhead: pages go to disk before they must leave memory, and come back ahead of need.
func TestBehindAndAhead(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := openDisk(t, dir, 100)
		c := newCache(t, Settings{Pages: 16, Disk: disk, Reads: 3})
		for i := range 40 {
			if !store(c, 0, i) {
				t.Fatal("refused")
			}
			synctest.Wait()
		}
		if s := c.Stats(); s.Lost != 0 || s.Evictions != 24 || s.DiskWrites < 24 || s.DiskWrites > 28 {
			t.Fatalf("%+v: want 24 evictions, all written before, and few besides", s)
		}
		hashes := []kvcache.Hash{}
		for i := range 8 {
			hashes = append(hashes, name(i))
		}
		if host, total := c.Match(hashes); host != 0 || total != 8 {
			t.Fatalf("match %d, %d, want 0, 8", host, total)
		}
		for want := 3; want <= 9; want += 3 {
			c.Prefetch(hashes, 0)
			synctest.Wait()
			if host, total := c.Match(hashes); host != min(want, 8) || total != 8 {
				t.Fatalf("match %d, %d, want %d, 8", host, total, min(want, 8))
			}
		}
		wantHave(t, c, "xxxxxxxx..")
		c.Close()
		if s := disk.Stats(); s.Pages != 40 {
			t.Fatalf("%d pages on disk after Close, want all 40", s.Pages)
		}
		if store(c, 0, 50) {
			t.Fatal("stored after Close")
		}
	})
	// The next process finds them.
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, Settings{Pages: 4, Disk: openDisk(t, dir, 100), Reads: 4})
		defer c.Close()
		if n := len(c.Changes(nil)); n != 40 {
			t.Fatalf("%d pages announced, want 40", n)
		}
		c.Prefetch([]kvcache.Hash{name(30), name(31)}, 0)
		synctest.Wait()
		if host, _ := c.Match([]kvcache.Hash{name(30), name(31)}); host != 2 {
			t.Fatalf("%d pages after a restart, want 2", host)
		}
		if !bytes.Equal(c.Pin(name(31)), pageOf(name(31))) {
			t.Fatal("wrong content")
		}
		c.Unpin(name(31))
	})
}

// TestCloseLooksAtEachPageOnce: what Close costs grows with the pages, not with their square.
func TestCloseLooksAtEachPageOnce(t *testing.T) {
	const pages = 300
	disk := openDisk(t, t.TempDir(), pages)
	c := newCache(t, Settings{Pages: 2 * pages, Disk: disk})
	for i := range pages {
		if !store(c, i%3, i) {
			t.Fatalf("page %d was refused", i)
		}
	}
	c.Close()
	if n := disk.Stats().Pages; n != pages {
		t.Errorf("%d pages on disk, want %d", n, pages)
	}
	if c.looked > 4*pages {
		t.Errorf("looked at %d pages to write %d", c.looked, pages)
	}
}

func TestSettingsErrors(t *testing.T) {
	for says, s := range map[string]Settings{
		"PageBytes is 0": {Pages: 1},
		"Pages is 0":     {PageBytes: 1},
		"Reads is -1":    {PageBytes: 1, Pages: 1, Reads: -1},
		"the disk's 256": {PageBytes: 1, Pages: 1, Disk: openDisk(t, t.TempDir(), 1)},
	} {
		if _, err := New(s); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
}

// TestPassage: pages that other workers send count as theirs, and leave with their memory once they were
// copied up; one that did not come whole is not there.
func TestPassage(t *testing.T) {
	c, err := New(Settings{PageBytes: 8, Pages: 2})
	if err != nil {
		t.Fatal(err)
	}
	copy(c.Receive(name(1), name(0), 0), "whole...")
	copy(c.Receive(name(2), name(1), 0), "damag")
	if c.Receive(name(3), name(2), 0) != nil {
		t.Error("there is room for a third page while two are on their way")
	}
	if host, total := c.Match([]kvcache.Hash{name(1), name(2)}); host != 0 || total != 2 {
		t.Errorf("%d of %d pages are ready before they came", host, total)
	}
	c.Commit(name(1), true)
	c.Commit(name(2), false)
	var page [8]byte
	if !c.Copy(name(1), page[:]) || string(page[:]) != "whole..." || c.Copy(name(2), page[:]) {
		t.Errorf("copied %q", page)
	}
	if s := c.Stats(); s.Hits != 0 {
		t.Errorf("a copy counts as a hit: %+v", s)
	}
	if string(c.Pin(name(1))) != "whole..." || c.Pin(name(2)) != nil {
		t.Error("what is there is not what came")
	}
	c.Release(name(1))
	if s := c.Stats(); s.Hits != 1 || s.FromPeer != 1 || s.FromDisk != 0 || s.Pages != 0 {
		t.Errorf("stats are %+v", s)
	}
	// The room is there again, for others.
	for i := 3; i < 5; i++ {
		if c.Reserve(name(i), name(0), 0) == nil {
			t.Fatalf("no room for page %d", i)
		}
		c.Commit(name(i), true)
		c.Pin(name(i))
		c.Unpin(name(i))
	}
	if s := c.Stats(); s.FromPeer != 1 || s.Pages != 2 {
		t.Errorf("stats are %+v", s)
	}
}
