package snapshot

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"google.golang.org/protobuf/encoding/protodelim"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/state"
)

const (
	// magic begins every snapshot file; the digit is the format's version.
	magic = "quire snapshot 1\n"
	// PieceBytes is how large the pieces of the state are, and the most that a reader accepts.
	PieceBytes = 64 << 10
	// maxHeaderBytes bounds the header.
	maxHeaderBytes = 1 << 20
)

// ErrDamaged means that a snapshot file is not what was saved.
var ErrDamaged = errors.New("the snapshot file is damaged")

// File is a snapshot file that was read and found whole.
type File struct {
	Header *pb.SnapshotFileHeader
	// View is the state in it.
	View *state.View
	// Bytes is the size of the state in the file.
	Bytes int64
}

// Write writes a snapshot file.
func Write(w io.Writer, header *pb.SnapshotFileHeader, view *state.View) error {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), PieceBytes)
	if _, err := out.WriteString(magic); err != nil {
		return err
	}
	if _, err := protodelim.MarshalTo(out, header); err != nil {
		return err
	}
	if _, err := view.WriteTo(pieceWriter{out}); err != nil {
		return err
	}
	if err := out.WriteByte(0); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

// pieceWriter puts a length before each piece.
type pieceWriter struct{ to *bufio.Writer }

func (p pieceWriter) Write(data []byte) (n int, err error) {
	for len(data) > 0 {
		piece := data[:min(len(data), PieceBytes)]
		if _, err := p.to.Write(binary.AppendUvarint(nil, uint64(len(piece)))); err != nil {
			return n, err
		}
		m, err := p.to.Write(piece)
		n += m
		if err != nil {
			return n, err
		}
		data = data[len(piece):]
	}
	return n, nil
}

// Read reads a snapshot file to its end and checks all of it: the checksum, that the state
// decodes, and that it is the one that the header names.
func Read(r io.Reader) (*File, error) {
	state := state.New()
	f := &File{}
	if err := ReadState(r, f, state.Restore); err != nil {
		return nil, err
	}
	f.View = state.View()
	if f.View.Index() != f.Header.GetIndex() || f.View.ChainHash() != f.Header.GetChainHash() {
		return nil, fmt.Errorf("%w: the header names entry %d with hash %016x, the state is of entry %d with hash %016x", ErrDamaged,
			f.Header.GetIndex(), f.Header.GetChainHash(), f.View.Index(), f.View.ChainHash())
	}
	return f, nil
}

// ReadState hands the state of a file to take, which must read it to its end, and fills in what the file
// says of itself. Whether the state is the one that the header names is not checked here.
func ReadState(r io.Reader, f *File, take func(io.Reader) error) error {
	in := &hashingReader{from: bufio.NewReaderSize(r, PieceBytes), sum: sha256.New()}
	begins := make([]byte, len(magic))
	if _, err := io.ReadFull(in, begins); err != nil || !bytes.Equal(begins, []byte(magic)) {
		if name := magic[:strings.LastIndexByte(magic, ' ')+1]; bytes.HasPrefix(begins, []byte(name)) {
			return fmt.Errorf("%w: its format is of another version than this program reads: it begins with %q, not %q", ErrDamaged, begins, magic)
		}
		return fmt.Errorf("%w: it does not begin with %q", ErrDamaged, magic)
	}
	f.Header = &pb.SnapshotFileHeader{}
	if err := (protodelim.UnmarshalOptions{MaxSize: maxHeaderBytes}).UnmarshalFrom(in, f.Header); err != nil {
		return fmt.Errorf("%w: its header: %w", ErrDamaged, err)
	}
	pieces := &pieceReader{from: in}
	taken := take(pieces)
	// Only the checksum tells whether the file or what made it is at fault.
	if _, err := io.Copy(io.Discard, pieces); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	want := in.sum.Sum(nil)
	sum := make([]byte, sha256.Size)
	if _, err := io.ReadFull(in.from, sum); err != nil || !bytes.Equal(sum, want) {
		return fmt.Errorf("%w: its checksum is wrong", ErrDamaged)
	}
	if _, err := in.from.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows its end", ErrDamaged)
	}
	f.Bytes = pieces.total
	return taken
}

// hashingReader hashes what is read through it, and no more.
type hashingReader struct {
	from *bufio.Reader
	sum  hash.Hash
}

func (h *hashingReader) Read(p []byte) (int, error) {
	n, err := h.from.Read(p)
	_, _ = h.sum.Write(p[:n]) // A hash takes everything.
	return n, err
}

func (h *hashingReader) ReadByte() (byte, error) {
	c, err := h.from.ReadByte()
	if err == nil {
		_, _ = h.sum.Write([]byte{c})
	}
	return c, err
}

// pieceReader joins the pieces again.
type pieceReader struct {
	from  *hashingReader
	left  int64
	total int64
	ended bool
}

func (p *pieceReader) Read(data []byte) (int, error) {
	if p.ended {
		return 0, io.EOF
	}
	if p.left == 0 {
		length, err := binary.ReadUvarint(p.from)
		switch {
		case err != nil:
			return 0, noEnd(err)
		case length > PieceBytes:
			return 0, fmt.Errorf("a piece of %d bytes; the limit is %d", length, PieceBytes)
		case length == 0:
			p.ended = true
			return 0, io.EOF
		}
		p.left = int64(length)
	}
	n, err := p.from.Read(data[:min(int64(len(data)), p.left)])
	p.left -= int64(n)
	p.total += int64(n)
	return n, noEnd(err)
}

// noEnd names an early end as what it is.
func noEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
