//go:build !unix

package gguf

import (
	"io"
	"os"
)

// mapFile reads the whole file where there is no mmap.
func mapFile(file *os.File, size int) ([]byte, func([]byte) error, error) {
	data := make([]byte, size)
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, nil, err
	}
	return data, func([]byte) error { return nil }, nil
}

// Drop does nothing: the data is this process's memory.
func (f *File) Drop(*Tensor) {}
