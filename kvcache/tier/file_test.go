package tier

import (
	"bytes"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/quire-serve/quire/kvcache"
)

var (
	testLayout = Layout{1, 2, 3}
	testHash   = kvcache.Root([]byte("block"), nil)
)

// blockFile is a valid file of page.
func blockFile(page []byte) []byte {
	var head [headerBytes]byte
	h := header{tenant: 7, layout: testLayout, hash: testHash, pageBytes: uint64(len(page)), sum: crc32.Checksum(page, castagnoli)}
	h.encode(&head)
	return append(head[:], page...)
}

func TestReadPage(t *testing.T) {
	page := []byte("keys and values of sixteen tokens")
	file := blockFile(page)
	dst := make([]byte, len(page))
	if err := readPage(bytes.NewReader(file), testHash, testLayout, dst); err != nil || !bytes.Equal(dst, page) {
		t.Fatalf("%q, %v", dst, err)
	}
	for i := range file {
		for bit := range 8 {
			file[i] ^= 1 << bit
			if err := readPage(bytes.NewReader(file), testHash, testLayout, dst); !errors.Is(err, ErrDamaged) {
				t.Fatalf("bit %d of byte %d flipped: %v, want ErrDamaged", bit, i, err)
			}
			file[i] ^= 1 << bit
		}
	}
	for n := range file {
		if err := readPage(bytes.NewReader(file[:n]), testHash, testLayout, dst); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut to %d bytes: %v, want ErrDamaged", n, err)
		}
	}
	for name, err := range map[string]error{
		"longer":        readPage(bytes.NewReader(append(file, 0)), testHash, testLayout, dst),
		"other hash":    readPage(bytes.NewReader(file), kvcache.Hash{1}, testLayout, dst),
		"other layout":  readPage(bytes.NewReader(file), testHash, Layout{}, dst),
		"other size":    readPage(bytes.NewReader(file), testHash, testLayout, dst[1:]),
		"later version": readPage(bytes.NewReader(versioned(file, 2)), testHash, testLayout, dst),
	} {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
	}
}

// versioned is the file as another version's build would write it, its header checksum right.
func versioned(file []byte, v byte) []byte {
	out := bytes.Clone(file)
	out[8] = v
	sum := crc32.Checksum(out[:76], castagnoli)
	out[76], out[77], out[78], out[79] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
	return out
}

// FuzzReadPage: whatever a file holds, the reader neither panics nor accepts a page that the header
// does not vouch for.
func FuzzReadPage(f *testing.F) {
	page := make([]byte, 64)
	f.Add(blockFile(page))
	f.Add(versioned(blockFile(page), 9))
	f.Add([]byte(magic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		dst := make([]byte, 64)
		err := readPage(bytes.NewReader(data), testHash, testLayout, dst)
		if err == nil {
			want := blockFile(dst)
			h, _ := decode(data)
			if len(data) != len(want) || !bytes.Equal(data[headerBytes:], dst) || h.hash != testHash || h.layout != testLayout {
				t.Fatalf("accepted %x", data)
			}
		} else if !errors.Is(err, ErrDamaged) {
			t.Fatalf("%v does not wrap ErrDamaged", err)
		}
	})
}
