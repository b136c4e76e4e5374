// Package text is how muslin's commands write for a person, and for a script.
package text

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// IsTerminal reports whether a stream that a command reads or writes is a terminal.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// CheckOutput refuses a value of --output that is neither text nor json.
func CheckOutput(output string) error {
	if output != "text" && output != "json" {
		return fmt.Errorf("--output %q: want text or json", output)
	}
	return nil
}

// JSON writes v as --output json does.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// Printer is a tabwriter that remembers its first error.
type Printer struct {
	w   *tabwriter.Writer
	err error
}

func (p *Printer) Line(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format+"\n", args...); p.err == nil {
		p.err = err
	}
}

func (p *Printer) Finish() error {
	if err := p.w.Flush(); p.err == nil {
		p.err = err
	}
	return p.err
}
func Dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func OnOff(on bool) string {
	if on {
		return "on"
	}
	return "OFF"
}

func Ago(now time.Time, t *time.Time) string {
	if t == nil {
		return "never"
	}
	return now.Sub(*t).Round(time.Second).String() + " ago"
}

// Bytes is n in the largest binary unit that leaves at least 1.
func Bytes(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for value >= 1024 && unit < 5 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, " KMGTP"[unit])
}

// Millis is a time in microseconds, as milliseconds with three digits that count.
func Millis(us int64) string {
	ms := float64(us) / 1000
	switch {
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// Percent is a share from 0 to 1. What is more than nothing does not look like nothing, nor what is less than all like all.
func Percent(share float64) string {
	switch percent := 100 * share; {
	case percent > 0 && percent < 1:
		return "<1 %"
	case percent > 99 && percent < 100:
		return ">99 %"
	default:
		return fmt.Sprintf("%.0f %%", percent)
	}
}

func Prefix(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func Addr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// NewPrinter writes a table to w. Columns are two blanks apart.
func NewPrinter(w io.Writer) *Printer {
	return &Printer{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}
