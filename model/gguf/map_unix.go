//go:build unix

package gguf

import (
	"os"

	"golang.org/x/sys/unix"
)

func mapFile(file *os.File, size int) ([]byte, func([]byte) error, error) {
	data, err := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, err
	}
	return data, unix.Munmap, nil
}

// Drop tells the system that a tensor's data is not needed soon, so that its pages stop counting
// against this process. It stays readable.
func (f *File) Drop(t *Tensor) {
	if f.unmap == nil {
		return
	}
	page := os.Getpagesize()
	from := t.at / page * page
	to := min(t.at+len(t.Data), len(f.data))
	_ = unix.Madvise(f.data[from:to], unix.MADV_DONTNEED) // advice: refusing it costs memory only
}
