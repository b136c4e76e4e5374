// Package doctor finds out what is wrong with this node, its peers and the path between, and names the cause.
//
// It looks for itself and asks the daemon only for what nobody else can know, so that it works with the daemon running,
// stopped or stuck, and on a node of flannel's. What it looks at is gathered once (patient.go); each check reads that and
// may try something of its own, all of them side by side (checks.go). A cause is put before what is but a consequence of
// it (order.go).
//
// It changes nothing but with --fix, and then only what can do no harm, after having asked (Repair).
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Severity is how bad a finding is.
type Severity string

// The severities.
const (
	Broken  Severity = "broken"  // packets are lost, or the daemon cannot work
	Warning Severity = "warning" // it works, and will not when something else comes to pass, or works less well
)

// How sure a finding is.
const (
	Certain  = "certain"  // the cause itself was seen
	Likely   = "likely"   // what was seen has hardly another cause
	Possible = "possible" // it may have another one
)

// Finding is one thing that is wrong. Others script against its JSON: fields are added, never renamed or removed
// (docs/doctor.md).
type Finding struct {
	ID         string   `json:"id"` // stable; listed in docs/doctor.md
	Severity   Severity `json:"severity"`
	Summary    string   `json:"summary"`    // what is wrong, one sentence, names the cause
	Evidence   string   `json:"evidence"`   // what was seen
	Fix        string   `json:"fix"`        // the command that fixes it, for a shell, with what is to be said beside it behind a #; or in words, what to do
	Confidence string   `json:"confidence"` // Certain, Likely or Possible
	Node       string   `json:"node"`       // PublicIP of the node that it is about, this one's or a peer's
	Net        string   `json:"net"`        // of several networks, the one that it is about; empty: there is but one

	// Explains are the IDs of findings that are but consequences of this one, and are put behind it: of the same node, or
	// with a "*" behind the ID of any node. "lease-*" is all whose IDs begin so, of any node, and "*" alone every other finding.
	Explains []string `json:"-"`
	// unless are IDs, written as in Explains, of findings that say the same and better: with one of them this is left out.
	unless []string
	// Repair is what --fix may do about it; nil: nothing that is safe.
	Repair *Repair `json:"-"`

	layer int // of the check that found it: its place in the list
}

// Repair is what mends a finding and can do no harm.
type Repair struct {
	What string // as a question asks for it: "set net.ipv4.ip_forward to 1"
	Do   func(ctx context.Context) error
}

// Needs says what of the patient a check cannot do without.
type Needs int

// What there is to need. Where it is not there, the check is not made, and the report says so.
const (
	NeedStatus Needs = 1 << iota // Patient.Status: a daemon that answers
	NeedStore                    // Patient.Store.Err is nil: the leases, as the store has them now
	NeedHost                     // Patient.Host.Err is nil
	NeedLocal                    // Patient.Local has a subnet
	NeedPeers                    // Patient.Peers has one
	NeedRoot                     // CAP_NET_ADMIN in this process
)

// Check looks for faults of one kind.
type Check struct {
	Name  string
	Needs Needs
	// Essential: without it nobody can say that all is well.
	Essential bool
	// Run returns what is wrong. It ends when ctx does, and may run beside every other check. Where it cannot tell, it says
	// so by Patient.CannotTell.
	Run func(ctx context.Context, p *Patient) []Finding
}

// Limit is how long all takes at most.
const Limit = 14 * time.Second

// Report is what was found. Others script against its JSON: fields are added, never renamed or removed (docs/doctor.md).
type Report struct {
	Time      time.Time   `json:"time"`
	Version   string      `json:"version"` // of this command
	Node      string      `json:"node"`    // this node's PublicIP; empty: it is not known
	Peers     int         `json:"peers"`   // how many were looked at
	Findings  []Finding   `json:"findings"`
	Checked   []string    `json:"checked"`
	Unchecked []Unchecked `json:"unchecked"`
	TookMS    int64       `json:"took_ms"`

	blind bool // something essential could not be checked
}

// Unchecked is a check that could not be made.
type Unchecked struct {
	Check  string `json:"check"`
	Reason string `json:"reason"`
	Net    string `json:"net"` // as Finding's
}

// Exit statuses of the command.
const (
	ExitNothing   = 0 // nothing was found
	ExitWarnings  = 1
	ExitBroken    = 2
	ExitUnchecked = 3 // nothing was found, but what matters could not be checked
)

// Exit is the report's.
func (r *Report) Exit() int {
	switch {
	case slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == Broken }):
		return ExitBroken
	case len(r.Findings) > 0:
		return ExitWarnings
	case r.blind:
		return ExitUnchecked
	}
	return ExitNothing
}

// Diagnose examines the patient that the options name. It takes no longer than Limit. It also returns the state directory,
// which may have been learnt.
func Diagnose(ctx context.Context, o Options) (r *Report, stateDir string) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	p := Gather(ctx, o)
	r = p.examine(ctx, checks())
	r.Time, r.TookMS = began.UTC(), time.Since(began).Milliseconds()
	return r, p.Options.StateDir
}

// examine makes all checks, side by side.
func (p *Patient) examine(ctx context.Context, all []Check) *Report {
	r := &Report{Version: p.Options.Version, Node: p.Local.Name(), Findings: []Finding{}, Checked: []string{}, Unchecked: []Unchecked{}, Peers: len(p.Peers)}
	var mu sync.Mutex
	var running sync.WaitGroup
	done := make(map[string][]Finding)
	idle := make(map[string]bool) // there is nothing to look at
	for _, c := range all {
		nobody := c.Needs&NeedPeers != 0 && len(p.Peers) == 0 && p.Store.Err == nil
		if nobody || c.Needs&NeedStatus != 0 && p.flannelServes() { // who needs no daemon of muslin's
			mu.Lock()
			done[c.Name], idle[c.Name] = nil, true
			mu.Unlock()
			continue
		}
		if why := p.lacks(c.Needs); why != nil {
			p.CannotTell(c.Name, why)
			continue
		}
		running.Go(func() {
			found := p.run(ctx, c)
			mu.Lock()
			defer mu.Unlock()
			done[c.Name] = found
		})
	}
	waitFor(ctx, &running)
	mu.Lock()
	defer mu.Unlock()
	for i, c := range all {
		found, ended := done[c.Name]
		why := p.untold(c.Name)
		if !ended && why == nil {
			why = fmt.Errorf("it did not end within %v", Limit)
		}
		if why != nil {
			r.Unchecked = append(r.Unchecked, Unchecked{c.Name, why.Error(), p.Options.Net})
			r.blind = r.blind || c.Essential
		} else if !idle[c.Name] {
			r.Checked = append(r.Checked, c.Name)
		}
		for _, f := range found {
			f.layer, f.Node, f.Net = i, cmp.Or(f.Node, r.Node), p.Options.Net
			f.Fix = p.withFlags(f.Fix)
			r.Findings = append(r.Findings, f)
		}
	}
	r.Findings = withoutDoubles(r.Findings)
	inOrder(r.Findings)
	return r
}

// run makes a check. One that fails by itself is one that could not be made: the others' findings are worth having, and a
// crash's exit status is that of ExitBroken.
func (p *Patient) run(ctx context.Context, c Check) []Finding {
	defer func() {
		if why := recover(); why != nil {
			p.CannotTell(c.Name, fmt.Errorf("it failed by itself, which is a fault of muslin's: %v", why))
		}
	}()
	return c.Run(ctx, p)
}

// waitFor leaves behind what does not heed the end of its time.
func waitFor(ctx context.Context, running *sync.WaitGroup) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		running.Wait()
	}()
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	select {
	case <-ended:
	case <-time.After(200 * time.Millisecond):
	}
}

// Merge makes one report of those of several networks.
func Merge(all []*Report) *Report {
	out := *all[0]
	for _, r := range all[1:] {
		out.Findings = append(out.Findings, r.Findings...)
		out.Unchecked = append(out.Unchecked, r.Unchecked...)
		for _, name := range r.Checked {
			if !slices.Contains(out.Checked, name) {
				out.Checked = append(out.Checked, name)
			}
		}
		out.TookMS = max(out.TookMS, r.TookMS)
		out.Peers += r.Peers
		out.blind = out.blind || r.blind
	}
	inOrder(out.Findings)
	return &out
}

// broken is a finding of which the cause itself was seen: the commonest kind.
func broken(id, summary, evidence, fix string) Finding {
	return Finding{ID: id, Severity: Broken, Summary: summary, Evidence: evidence, Fix: fix, Confidence: Certain}
}
