package text

import (
	"io"
	"os"
	"strings"
	"testing"
)

func TestIsTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, r := range map[string]io.Reader{"no file": strings.NewReader(""), "/dev/null": null} {
		if IsTerminal(r) {
			t.Errorf("%s is a terminal", name)
		}
	}
	if pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0); err == nil {
		defer pty.Close()
		if !IsTerminal(pty) {
			t.Error("a pseudoterminal is none")
		}
	}
}
