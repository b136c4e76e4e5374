// Package health answers whoever watches the process: /healthz says whether it is worth to go on with it, /readyz whether this
// node carries packets. Both say why not. It also finds workers that do not come to the end of a batch.
package health

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Check is one thing that was looked at.
type Check struct {
	Name    string `json:"name"`    // of what: see the constants
	Network string `json:"network"` // where a process has several networks; empty: it has one
	OK      bool   `json:"ok"`
	Decides bool   `json:"decides"` // it makes the whole answer no; otherwise it is only told
	Reason  string `json:"reason"`  // how it stands, as a sentence without its period
}

// The names of checks.
const (
	Start   = "start"   // the network is joined, and packets are carried
	Workers = "workers" // each batch of packets comes to its end
	Store   = "store"   // leases can be read and renewed
	File    = "file"    // --config's
)

// Answer is what an endpoint says. Others script against its JSON (docs/metrics.md).
type Answer struct {
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks"` // never null
}

// of is yes unless a check that decides is not.
func of(checks []Check) Answer {
	a := Answer{OK: true, Checks: checks}
	if checks == nil {
		a.Checks = []Check{}
	}
	for _, c := range checks {
		if c.Decides && !c.OK {
			a.OK = false
		}
	}
	return a
}

// Handle adds /healthz and /readyz to mux. An answer is text: a word, then a line for what is not in order, with ?verbose for
// everything. Whoever accepts JSON gets that. The status is 200 or 503 either way.
func Handle(mux *http.ServeMux, alive, ready func() []Check) {
	mux.Handle("GET /healthz", endpoint{"ok", "not ok", alive})
	mux.Handle("GET /readyz", endpoint{"ready", "not ready", ready})
}

type endpoint struct {
	yes, no string
	checks  func() []Check
}

func (e endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := of(e.checks())
	body, kind := e.text(&a, r.URL.Query().Has("verbose")), "text/plain; charset=utf-8"
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		body, kind = jsonText(&a), "application/json"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !a.OK {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write([]byte(body)) // the client is gone: nobody to tell
}

func jsonText(a *Answer) string {
	data, err := json.Marshal(a)
	if err != nil {
		panic(err) // strings and booleans
	}
	return string(data) + "\n"
}

func (e endpoint) text(a *Answer, all bool) string {
	var b strings.Builder
	fmt.Fprintln(&b, map[bool]string{true: e.yes, false: e.no}[a.OK])
	for _, c := range a.Checks {
		if c.OK && !all {
			continue
		}
		mark := "ok     "
		switch {
		case !c.OK && c.Decides:
			mark = "NOT OK "
		case !c.OK:
			mark = "note   "
		}
		if c.Network != "" {
			mark += c.Network + ": "
		}
		fmt.Fprintf(&b, "%s%s: %s\n", mark, c.Name, c.Reason)
	}
	return b.String()
}
