package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Print writes the report for a person: one line for each finding, with what was seen and the command that mends it last in it.
// Laid out, as for a terminal, these two stand below it.
func (r *Report) Print(w io.Writer, laidOut bool) error {
	var b strings.Builder
	seen, fix, between := "; seen: ", "; fix: ", ""
	if laidOut {
		seen, fix, between = "\n   seen  ", "\n    fix  ", "\n"
	}
	for i, f := range r.Findings {
		if i > 0 {
			b.WriteString(between)
		}
		where := ""
		if f.Node != "" && f.Node != r.Node {
			where = " [" + f.Node + "]"
		}
		if f.Net != "" {
			where += " [network " + f.Net + "]"
		}
		fmt.Fprintf(&b, "%-7s  %s%s: %s (%s)", strings.ToUpper(string(f.Severity)), f.ID, where, f.Summary, f.Confidence)
		if f.Evidence != "" {
			b.WriteString(seen + f.Evidence)
		}
		if f.Fix != "" {
			b.WriteString(fix + f.Fix)
		}
		b.WriteString("\n")
	}
	took := (time.Duration(r.TookMS) * time.Millisecond).Round(100 * time.Millisecond)
	if len(r.Findings) > 0 {
		b.WriteString(between)
	}
	switch {
	case len(r.Findings) > 0:
		fmt.Fprintf(&b, "%s; mend the first, and look again.", count(len(r.Findings), "finding"))
	case r.blind:
		b.WriteString("Nothing was found, but not all that matters could be checked.")
	default:
		b.WriteString("All is well.")
	}
	fmt.Fprintf(&b, " Checked in %v, %s: %s\n", took, count(r.Peers, "peer"), strings.Join(r.Checked, ", "))
	for _, why := range r.whyUnchecked() {
		fmt.Fprintf(&b, "not checked: %s\n", why)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// whyUnchecked are the checks that could not be made with the reason behind them, once for all that have it in common.
func (r *Report) whyUnchecked() []string {
	var reasons []string
	checks := make(map[string][]string)
	for _, u := range r.Unchecked {
		if checks[u.Reason] == nil {
			reasons = append(reasons, u.Reason)
		}
		if !slices.Contains(checks[u.Reason], u.Check) { // of several networks
			checks[u.Reason] = append(checks[u.Reason], u.Check)
		}
	}
	for i, reason := range reasons {
		reasons[i] = strings.Join(checks[reason], ", ") + ": " + reason
	}
	return reasons
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// FileName is where the last report is kept, in the daemon's state directory.
const FileName = "doctor.json"

// Keep writes the report into the state directory, for others to show. Where there is none, it is not kept. It belongs to
// the directory's owner, as whom a daemon may run.
func (r *Report) Keep(stateDir string) error {
	info, err := os.Stat(stateDir)
	if err != nil || !info.IsDir() {
		return nil
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(stateDir, FileName)
	unfinished := filepath.Join(stateDir, "."+FileName+".new")
	if err := os.WriteFile(unfinished, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep the report: %w", err)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = os.Chown(unfinished, int(owner.Uid), int(owner.Gid)) // or it stays ours, and the daemon says that it cannot read it
	}
	if err := os.Rename(unfinished, path); err != nil {
		os.Remove(unfinished)
		return fmt.Errorf("keep the report: %w", err)
	}
	return nil
}

// ReadReport reads what Keep wrote. A file that is not there is an fs.ErrNotExist.
func ReadReport(stateDir string) (*Report, error) {
	data, err := os.ReadFile(filepath.Join(stateDir, FileName))
	if err != nil {
		return nil, err
	}
	r := new(Report)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(stateDir, FileName), err)
	}
	return r, nil
}
