package gguf

import (
	"fmt"
	"os"
)

// Open maps a file read-only and reads its descriptions. The tensors' data is read from disk when
// it is first touched.
func Open(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: it is no regular file", path, ErrFormat)
	}
	if info.Size() == 0 {
		return nil, fmt.Errorf("%s: %w: it is empty", path, ErrFormat)
	}
	if info.Size() != int64(int(info.Size())) {
		return nil, fmt.Errorf("%s: %d bytes are too many for this machine's addresses", path, info.Size())
	}
	data, unmap, err := mapFile(file, int(info.Size()))
	if err != nil {
		return nil, fmt.Errorf("%s: map into memory: %w", path, err)
	}
	f, err := Parse(data)
	if err != nil {
		_ = unmap(data)
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f.unmap = unmap
	return f, nil
}

// Close unmaps the file. Tensors' data must not be touched afterwards; strings and arrays that
// getters returned stay valid.
func (f *File) Close() error {
	data, unmap := f.data, f.unmap
	f.data, f.unmap, f.Tensors, f.tensors = nil, nil, nil, nil
	f.keys, f.values = nil, nil
	if unmap == nil {
		return nil
	}
	return unmap(data)
}
