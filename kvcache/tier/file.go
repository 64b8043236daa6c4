package tier

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/quire-serve/quire/kvcache"
)

// ErrDamaged means that a file is not what its header and checksums say, or not a block at all.
var ErrDamaged = errors.New("tier: damaged block file")

// Layout is a digest of everything that a page's bytes depend on besides its tokens: the model's
// weights, the shape and element type of the cache, the kind of device.
type Layout [16]byte

// A block file is a header and one page. All numbers are little-endian.
//
//	 0  magic "QUIREKV\x00"
//	 8  version, uint32
//	12  tenant, uint32
//	16  layout
//	32  hash
//	48  parent
//	64  bytes of the page, uint64
//	72  CRC-32C of the page, uint32
//	76  CRC-32C of bytes 0 to 75, uint32
const (
	magic       = "QUIREKV\x00"
	version     = 1
	headerBytes = 80
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is what a block file says of itself.
type header struct {
	tenant       int
	layout       Layout
	hash, parent kvcache.Hash
	pageBytes    uint64
	sum          uint32
}

func (h *header) encode(dst *[headerBytes]byte) {
	copy(dst[:8], magic)
	binary.LittleEndian.PutUint32(dst[8:], version)
	binary.LittleEndian.PutUint32(dst[12:], uint32(h.tenant))
	copy(dst[16:32], h.layout[:])
	copy(dst[32:48], h.hash[:])
	copy(dst[48:64], h.parent[:])
	binary.LittleEndian.PutUint64(dst[64:], h.pageBytes)
	binary.LittleEndian.PutUint32(dst[72:], h.sum)
	binary.LittleEndian.PutUint32(dst[76:], crc32.Checksum(dst[:76], castagnoli))
}

// decode reads a header. Any error wraps ErrDamaged.
func decode(data []byte) (h header, err error) {
	switch {
	case len(data) < headerBytes:
		return h, fmt.Errorf("%w: %d bytes, a header has %d", ErrDamaged, len(data), headerBytes)
	case string(data[:8]) != magic:
		return h, fmt.Errorf("%w: no block file", ErrDamaged)
	case crc32.Checksum(data[:76], castagnoli) != binary.LittleEndian.Uint32(data[76:]):
		return h, fmt.Errorf("%w: header checksum", ErrDamaged)
	case binary.LittleEndian.Uint32(data[8:]) != version:
		return h, fmt.Errorf("%w: version %d, this build reads %d", ErrDamaged, binary.LittleEndian.Uint32(data[8:]), version)
	}
	h.tenant = int(binary.LittleEndian.Uint32(data[12:]))
	copy(h.layout[:], data[16:32])
	copy(h.hash[:], data[32:48])
	copy(h.parent[:], data[48:64])
	h.pageBytes = binary.LittleEndian.Uint64(data[64:])
	h.sum = binary.LittleEndian.Uint32(data[72:])
	return h, nil
}

// matches reports whether the header is that of a page which this tier can use.
func (h *header) matches(hash kvcache.Hash, layout Layout, pageBytes int) error {
	switch {
	case h.layout != layout:
		return fmt.Errorf("%w: layout %x, want %x", ErrDamaged, h.layout, layout)
	case h.pageBytes != uint64(pageBytes):
		return fmt.Errorf("%w: page of %d bytes, want %d", ErrDamaged, h.pageBytes, pageBytes)
	case h.hash != hash:
		return fmt.Errorf("%w: hash %v, want %v", ErrDamaged, h.hash, hash)
	}
	return nil
}
