package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// result is what came of one kernel.
type result struct {
	kernel  string // "5.10"
	version string // of Debian's package
	release string // as uname -r prints it
	took    time.Duration
	guest   time.Duration // by its own clock, which stands still while this machine has no time for it

	features []feature
	segments int // udp_max_segments
	status   int // of the suite

	pass, fail, skip int      // tests, without those within tests
	failed, skipped  []string // their names
}

// feature is one of `muslin features --output json`.
type feature struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Reason string `json:"reason"`
}

func (r result) passed() bool { return r.status == 0 && r.pass > 0 }

// outcome is a line of `go test -v` about one whole test.
var outcome = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+)`)

// readResult reads what the guest said: parts that begin with a line "== NAME" (init.sh).
func readResult(out []byte) (result, error) {
	r := result{status: -1}
	var features strings.Builder
	part := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\r\n")
		if mark, ok := strings.CutPrefix(line, "== "); ok {
			name, value, _ := strings.Cut(mark, " ")
			switch part = name; name {
			case "kernel":
				r.release = value
			case "uptime", "status":
				n, err := strconv.Atoi(value)
				if err != nil {
					return r, fmt.Errorf("%s of the guest: %w", name, err)
				}
				if name == "uptime" {
					r.guest = time.Duration(n) * time.Second
				} else {
					r.status = n
				}
			}
			continue
		}
		switch part {
		case "features":
			features.WriteString(line)
		case "suite":
			r.count(line)
		}
	}
	if r.status < 0 {
		return r, errCut
	}
	return r, r.readFeatures(features.String())
}

func (r *result) count(line string) {
	m := outcome.FindStringSubmatch(line)
	if m == nil {
		return
	}
	switch m[1] {
	case "PASS":
		r.pass++
	case "FAIL":
		r.fail++
		r.failed = append(r.failed, m[2])
	case "SKIP":
		r.skip++
		r.skipped = append(r.skipped, m[2])
	}
}

func (r *result) readFeatures(text string) error {
	var all struct {
		Segments int       `json:"udp_max_segments"`
		Features []feature `json:"features"`
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return fmt.Errorf("output of `muslin features`: %w: %s", err, text)
	}
	r.features, r.segments = all.Features, all.Segments
	return nil
}

// markdown is the table of features, a column for each kernel, and the table of runs.
func markdown(all []result) string {
	if len(all) == 0 {
		return ""
	}
	var b strings.Builder
	row := func(first string, cell func(result) string) {
		fmt.Fprintf(&b, "| %s |", first)
		for _, r := range all {
			fmt.Fprintf(&b, " %s |", cell(r))
		}
		b.WriteString("\n")
	}
	row("Feature", func(r result) string { return r.kernel })
	row("---", func(result) string { return "---" })
	for i, f := range all[0].features {
		row("`"+f.Name+"`", func(r result) string { return r.features[i].State })
	}
	row("datagrams in one piece", func(r result) string { return strconv.Itoa(r.segments) })
	b.WriteString("\n| Kernel | Package | Tests passed | Failed | Left out | Duration | By the guest's clock |\n|---|---|---|---|---|---|---|\n")
	for _, r := range all {
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %s | %v | %v |\n", r.release, r.version, r.pass, names(r.failed), names(r.skipped), r.took.Round(time.Second), r.guest)
	}
	return b.String()
}

func names(tests []string) string {
	if len(tests) == 0 {
		return "none"
	}
	return strings.Join(tests, ", ")
}
