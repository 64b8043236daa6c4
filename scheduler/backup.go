package scheduler

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
	// backupMagic begins every snapshot file; the digit is the format's version.
	backupMagic = "quire snapshot 1\n"
	// backupPiece is how large the pieces of the state are, and the most that a reader accepts.
	backupPiece = 64 << 10
	// maxBackupHeader bounds the header.
	maxBackupHeader = 1 << 20
)

// ErrDamagedSnapshot means that a snapshot file is not what was saved.
var ErrDamagedSnapshot = errors.New("the snapshot file is damaged")

// Backup is a snapshot file that was read and found whole.
type Backup struct {
	Header *pb.SnapshotFileHeader
	// View is the state in it.
	View *state.View
	// Bytes is the size of the state in the file.
	Bytes int64
}

// writeBackup writes a snapshot file.
func writeBackup(w io.Writer, header *pb.SnapshotFileHeader, view *state.View) error {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), backupPiece)
	if _, err := out.WriteString(backupMagic); err != nil {
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
		piece := data[:min(len(data), backupPiece)]
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

// ReadBackup reads a snapshot file to its end and checks all of it: the checksum, that the state
// decodes, and that it is the one that the header names.
func ReadBackup(r io.Reader) (*Backup, error) {
	state := state.New()
	b := &Backup{}
	if err := readBackup(r, b, state.Restore); err != nil {
		return nil, err
	}
	b.View = state.View()
	if b.View.Index() != b.Header.GetIndex() || b.View.ChainHash() != b.Header.GetChainHash() {
		return nil, fmt.Errorf("%w: the header names entry %d with hash %016x, the state is of entry %d with hash %016x", ErrDamagedSnapshot,
			b.Header.GetIndex(), b.Header.GetChainHash(), b.View.Index(), b.View.ChainHash())
	}
	return b, nil
}

// readBackup hands the state of a file to take, which must read it to its end.
func readBackup(r io.Reader, b *Backup, take func(io.Reader) error) error {
	in := &hashingReader{from: bufio.NewReaderSize(r, backupPiece), sum: sha256.New()}
	magic := make([]byte, len(backupMagic))
	if _, err := io.ReadFull(in, magic); err != nil || !bytes.Equal(magic, []byte(backupMagic)) {
		if name := backupMagic[:strings.LastIndexByte(backupMagic, ' ')+1]; bytes.HasPrefix(magic, []byte(name)) {
			return fmt.Errorf("%w: its format is of another version than this program reads: it begins with %q, not %q", ErrDamagedSnapshot, magic, backupMagic)
		}
		return fmt.Errorf("%w: it does not begin with %q", ErrDamagedSnapshot, backupMagic)
	}
	b.Header = &pb.SnapshotFileHeader{}
	if err := (protodelim.UnmarshalOptions{MaxSize: maxBackupHeader}).UnmarshalFrom(in, b.Header); err != nil {
		return fmt.Errorf("%w: its header: %w", ErrDamagedSnapshot, err)
	}
	pieces := &pieceReader{from: in}
	taken := take(pieces)
	// Only the checksum tells whether the file or what made it is at fault.
	if _, err := io.Copy(io.Discard, pieces); err != nil {
		return fmt.Errorf("%w: %w", ErrDamagedSnapshot, err)
	}
	want := in.sum.Sum(nil)
	sum := make([]byte, sha256.Size)
	if _, err := io.ReadFull(in.from, sum); err != nil || !bytes.Equal(sum, want) {
		return fmt.Errorf("%w: its checksum is wrong", ErrDamagedSnapshot)
	}
	if _, err := in.from.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows its end", ErrDamagedSnapshot)
	}
	b.Bytes = pieces.total
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
		case length > backupPiece:
			return 0, fmt.Errorf("a piece of %d bytes; the limit is %d", length, backupPiece)
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
