package capture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// files is what a capture is written to: stdout, one file, or a ring of them.
type files struct {
	name string // empty: to
	to   io.Writer
	ring int   // how many files; 0: one, without a number
	size int64 // bytes, of one of the ring

	next    int
	file    *os.File
	written int64
}

// check says what is wrong with the flags.
func (f *files) check() error {
	switch {
	case f.ring == 0 && f.size == 0:
		return nil
	case f.ring < 2 || f.ring > 10000:
		return fmt.Errorf("--ring-files %d: want 2 to 10000, and --ring-size", f.ring)
	case f.size < 1:
		return errors.New("--ring-size: want how large a file may become, in MB")
	case f.name == "" || f.name == "-":
		return errors.New("--ring-files: name the files with -w FILE; a number is put behind it")
	}
	return nil
}

// nameOf is that of one file of the ring: as of tcpdump, with as many digits as the last one has.
func (f *files) nameOf(i int) string {
	if f.ring == 0 {
		return f.name
	}
	return fmt.Sprintf("%s%0*d", f.name, len(strconv.Itoa(f.ring-1)), i)
}

// open begins with the file behind the newest of the ring, so that an earlier capture is not overwritten first.
func (f *files) open() (io.Writer, error) {
	if f.name == "" || f.name == "-" {
		return f.to, nil
	}
	if f.file == nil && f.ring > 0 {
		var newest time.Time
		for i := range f.ring {
			if info, err := os.Stat(f.nameOf(i)); err == nil && !info.ModTime().Before(newest) {
				newest, f.next = info.ModTime(), (i+1)%f.ring
			}
		}
	}
	file, err := os.OpenFile(f.nameOf(f.next), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the capture's file: %w", err)
	}
	f.file, f.written = file, 0
	return file, nil
}

// full reports whether the next one is to be opened before so many bytes more are written.
func (f *files) full(more int) bool {
	return f.ring > 0 && f.written > 0 && f.written+int64(more) > f.size
}

// advance closes the file and opens the next.
func (f *files) advance() (io.Writer, error) {
	if err := f.close(); err != nil {
		return nil, err
	}
	f.next = (f.next + 1) % f.ring
	return f.open()
}

func (f *files) close() error {
	if f.file == nil {
		return nil
	}
	if err := f.file.Close(); err != nil {
		return fmt.Errorf("close the capture's file: %w", err)
	}
	return nil
}
