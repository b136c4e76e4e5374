//go:build linux

package labtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"muslin/bench/lab"
)

// Bin is the muslin binary under test, once Main runs.
var Bin string

// Main is a suite's TestMain: it sweeps up what killed labs left, finds or builds the binary, and runs the
// tests. It returns the exit status.
func Main(m *testing.M) int {
	if _, err := lab.Sweep(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if Bin = os.Getenv("MUSLIN_BIN"); Bin != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "muslin-labtest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // some tests run the binary as nobody
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	Bin = filepath.Join(dir, "muslin")
	build := exec.Command("go", "build", "-o", Bin, "muslin/cmd/muslin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the binary under test: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}
