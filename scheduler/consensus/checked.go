package consensus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"
)

// checked is a small file of JSON that knows whether it is as it was written.
type checked struct {
	Checksum string          `json:"checksum"`
	Content  json.RawMessage `json:"content"`
}

// WriteChecked replaces a file, as a whole or not at all, with v as JSON under a checksum.
func WriteChecked(path string, v any) error {
	content, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	data, err := json.MarshalIndent(checked{checksum(content), content}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return writeFileSync(path, append(data, '\n'))
}

// ReadChecked reads what WriteChecked wrote. A file that is not there is fs.ErrNotExist, one that is not
// as it was written a *Damage.
func ReadChecked(path string, v any) error {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return err
	case err != nil:
		return &Damage{What: path, Err: err}
	}
	var s checked
	var content bytes.Buffer
	if err := json.Unmarshal(data, &s); err != nil {
		return Damaged(path, "it is no JSON any more: %w", err)
	}
	if err := json.Compact(&content, s.Content); err != nil || checksum(content.Bytes()) != s.Checksum {
		return Damaged(path, "its checksum is wrong")
	}
	if err := json.Unmarshal(content.Bytes(), v); err != nil {
		return Damaged(path, "it holds something else: %w", err)
	}
	return nil
}

func checksum(content []byte) string { return fmt.Sprintf("%016x", xxhash.Sum64(content)) }

// writeFileSync writes a file beside path, syncs it and puts it in path's place.
func writeFileSync(path string, data []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename in a folder last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
