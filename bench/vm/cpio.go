package main

import (
	"fmt"
	"io"
)

// archive writes a root filesystem in the format that the kernel unpacks: cpio, "newc"
// (Documentation/driver-api/early-userspace/buffer-format.rst). Each entry is a header of 110 bytes, fourteen
// numbers as hexadecimal text:
//
//	magic  ino  mode  uid  gid  nlink  mtime  filesize  dev(2)  rdev(2)  namesize  check
//	6      8    8     8    8    8      8      8         8 8     8 8      8         8
//
// then the name with its zero byte, then the content; name and content are filled up to a multiple of four.
type archive struct {
	w       io.Writer
	entries int   // which gives each its inode number
	written int64 // bytes
	err     error // the first
}

// Types of a file, with its permissions (inode(7)).
const (
	modeDir     = 0o040755
	modeFile    = 0o100644
	modeProgram = 0o100755
	modeLink    = 0o120777
)

// add writes an entry with size bytes of content. The name has no leading slash.
func (a *archive) add(name string, mode uint32, size int64, content io.Reader) {
	a.entries++
	a.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	if a.err == nil && size > 0 {
		var n int64
		n, a.err = io.CopyN(a.w, content, size)
		a.written += n
	}
	a.pad()
}

// close writes the entry that ends the archive, and returns the first error of all.
func (a *archive) close() error {
	a.add("TRAILER!!!", 0, 0, nil)
	return a.err
}

func (a *archive) printf(format string, args ...any) {
	if a.err != nil {
		return
	}
	var n int
	n, a.err = fmt.Fprintf(a.w, format, args...)
	a.written += int64(n)
}

func (a *archive) pad() {
	for a.written%4 != 0 && a.err == nil {
		a.printf("\x00")
	}
}
