package lease

import (
	"io/fs"
	"syscall"
)

// inodeOf tells a replaced file from the one before it.
func inodeOf(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
