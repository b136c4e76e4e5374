package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

const maxReport = 1 << 20 // bytes

// report is what doctor found last. The page has it as it is, but for what it does not show.
type report struct {
	Time     time.Time `json:"time"`
	Findings []finding `json:"findings"`
	Error    string    `json:"error"` // why it cannot be shown; empty: it can
}

type finding struct {
	ID         string `json:"id"`
	Severity   string `json:"severity"`
	Summary    string `json:"summary"`
	Evidence   string `json:"evidence"`
	Fix        string `json:"fix"`
	Confidence string `json:"confidence"`
	Node       string `json:"node"`
	Net        string `json:"net"`
}

// reports are those that were read, by file: one that has not changed is not read again.
type reports map[string]readFile

type readFile struct {
	modified time.Time
	size     int64
	report   *report
}

// read is the report in the first of the files that is there; nil: none is.
func (all reports) read(files []string) *report {
	for _, file := range files {
		info, err := os.Stat(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return &report{Error: err.Error()}
		}
		if was, ok := all[file]; ok && was.modified.Equal(info.ModTime()) && was.size == info.Size() {
			return was.report
		}
		r, err := parseReport(file)
		if err != nil {
			r = &report{Time: info.ModTime(), Error: fmt.Sprintf("%s: %v", file, err)}
		}
		all[file] = readFile{info.ModTime(), info.Size(), r}
		return r
	}
	return nil
}

func parseReport(file string) (*report, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxReport))
	if err != nil {
		return nil, err
	}
	r := new(report)
	if err := json.Unmarshal(content, r); err != nil {
		return nil, err
	}
	r.Error = ""
	return r, nil
}
