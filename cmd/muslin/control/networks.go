package control

import (
	"errors"
	"fmt"
	"io"
	"time"

	"muslin/cmd/muslin/text"
)

// ErrSeveral says that the process behind a control socket has several networks, and none was named.
var ErrSeveral = errors.New("several networks run there")

// Networks is what `muslin status --output json` prints for a process with several networks. Others script against it:
// fields are added, never renamed or removed (docs/networks.md).
type Networks struct {
	Version    string          `json:"version"`
	Kernel     string          `json:"kernel"`
	Config     string          `json:"config"`       // the file
	Loaded     time.Time       `json:"loaded"`       // when it was taken last
	Error      string          `json:"config_error"` // why it was not, when it was read after that; empty: it was
	Networks   []NetworkStatus `json:"networks"`     // by name
	Privileges PrivilegeStatus `json:"privileges"`
	Process    ProcessStatus   `json:"process"`
}

// NetworkStatus is one of them.
type NetworkStatus struct {
	Name    string     `json:"name"`
	Control string     `json:"control"` // its own socket
	State   string     `json:"state"`   // "running", "failed", or what its start waits for
	Error   string     `json:"error"`   // failed: why
	Again   *time.Time `json:"again"`   // failed: when it starts again
	Status  *Status    `json:"status"`  // as its own socket has it
}

const StateFailed = "failed"

// print writes them for a person, with so many peers of each at most, 0 for all.
func (s *Networks) Print(w io.Writer, now time.Time, most int) error {
	running := 0
	for _, one := range s.Networks {
		if one.State == StateRunning {
			running++
		}
	}
	p := text.NewPrinter(w)
	p.Line("muslin %s: %d of %d networks running", s.Version, running, len(s.Networks))
	if s.Error != "" {
		p.Line("WARNING: %s is wrong now, and all stay as they were: %s", s.Config, s.Error)
	}
	for _, one := range s.Networks {
		p.Line("  %s\t%s", one.Name, one.State)
	}
	if err := p.Finish(); err != nil {
		return err
	}
	for _, one := range s.Networks {
		if _, err := fmt.Fprintf(w, "\n--- network %s (--net %s)\n", one.Name, one.Name); err != nil {
			return err
		}
		if err := one.Print(w, now, most); err != nil {
			return err
		}
	}
	return nil
}

func (s *NetworkStatus) Print(w io.Writer, now time.Time, most int) error {
	if s.State != StateFailed {
		return s.Status.Print(w, now, most)
	}
	_, err := fmt.Fprintf(w, "does not run, and starts again in %v: %s\n", max(0, s.Again.Sub(now)).Round(time.Second), s.Error)
	return err
}
