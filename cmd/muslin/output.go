package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
)

// checkOutput refuses a value of --output that is neither text nor json.
func checkOutput(output string) error {
	if output != "text" && output != "json" {
		return fmt.Errorf("--output %q: want text or json", output)
	}
	return nil
}

// printJSON writes v as --output json does.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printer is a tabwriter that remembers its first error.
type printer struct {
	w   *tabwriter.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format+"\n", args...); p.err == nil {
		p.err = err
	}
}

func (p *printer) finish() error {
	if err := p.w.Flush(); p.err == nil {
		p.err = err
	}
	return p.err
}
