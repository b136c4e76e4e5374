package doctor

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"muslin/lease"
)

// What becomes of checks that find something, cannot tell, need what is not there, do not end, and fail by themselves.
func TestExamine(t *testing.T) {
	finds := func(f ...Finding) func(context.Context, *Patient) []Finding {
		return func(context.Context, *Patient) []Finding { return f }
	}
	unsure := func(_ context.Context, p *Patient) []Finding {
		p.CannotTell("it", errors.New("nobody knows"))
		return nil
	}
	hangs := func(context.Context, *Patient) []Finding { time.Sleep(10 * time.Second); return nil }
	crashes := func(context.Context, *Patient) []Finding { panic("oh") }
	bad := broken("bad", "it is bad", "seen", "mend it")
	mild := bad
	mild.ID, mild.Severity = "mild", Warning
	for name, w := range map[string]struct {
		check Check
		store error
		ids   []string
		exit  int
		why   string // of what was not checked; empty: all was
	}{
		"nothing":                  {check: Check{Run: finds()}, exit: ExitNothing},
		"a warning":                {check: Check{Run: finds(mild)}, ids: []string{"mild"}, exit: ExitWarnings},
		"broken":                   {check: Check{Run: finds(mild, bad)}, ids: []string{"bad", "mild"}, exit: ExitBroken},
		"not sure":                 {check: Check{Run: unsure}, exit: ExitNothing, why: "nobody knows"},
		"not sure, of what counts": {check: Check{Run: unsure, Essential: true}, exit: ExitUnchecked, why: "nobody knows"},
		"no store":                 {check: Check{Run: finds(bad), Needs: NeedStore}, store: lease.ErrUnavailable, exit: ExitNothing, why: "not reached"},
		"no peers":                 {check: Check{Run: finds(bad), Needs: NeedPeers, Essential: true}, exit: ExitNothing},
		"no peers known":           {check: Check{Run: finds(bad), Needs: NeedPeers, Essential: true}, store: lease.ErrUnavailable, exit: ExitUnchecked, why: "no peers are known"},
		"no daemon":                {check: Check{Run: finds(bad), Needs: NeedStatus, Essential: true}, exit: ExitUnchecked, why: "no daemon answers"},
		"no end":                   {check: Check{Run: hangs, Essential: true}, exit: ExitUnchecked, why: "did not end"},
		"a crash":                  {check: Check{Run: crashes, Essential: true}, exit: ExitUnchecked, why: "fault of muslin's: oh"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			w.check.Name = "it"
			p := &Patient{StatusErr: errors.New("none"), Store: Store{Err: w.store}}
			r := p.examine(ctx, []Check{w.check})
			var ids []string
			for _, f := range r.Findings {
				ids = append(ids, f.ID)
			}
			if !slices.Equal(ids, w.ids) || r.Exit() != w.exit {
				t.Errorf("found %v, exit status %d; want %v, %d", ids, r.Exit(), w.ids, w.exit)
			}
			switch {
			case w.why == "" && (len(r.Unchecked) != 0 || len(r.Checked) != 1 && name != "no peers"):
				t.Errorf("checked %v, not checked %v", r.Checked, r.Unchecked)
			case w.why != "" && (len(r.Unchecked) != 1 || !strings.Contains(r.Unchecked[0].Reason, w.why)):
				t.Errorf("not checked %v, want one for %q", r.Unchecked, w.why)
			}
		})
	}
}

func TestReportText(t *testing.T) {
	laidOut := true
	text := func(r *Report) string {
		var b bytes.Buffer
		if err := r.Print(&b, laidOut); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	well := &Report{Node: "192.0.2.1", Peers: 2, TookMS: 130, Checked: []string{"a", "b"}}
	if got, want := text(well), "All is well. Checked in 100ms, 2 peers: a, b\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	blind := &Report{Unchecked: []Unchecked{{Check: "a", Reason: "why"}, {Check: "b", Reason: "else"}, {Check: "c", Reason: "why"}}, blind: true}
	if got, want := text(blind), "Nothing was found, but not all that matters could be checked. Checked in 0s, 0 peers: \nnot checked: a, c: why\nnot checked: b: else\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	ill := &Report{Node: "192.0.2.1", Peers: 1, Checked: []string{"a"}, Findings: []Finding{
		{ID: "one", Severity: Broken, Summary: "It is", Evidence: "this", Fix: "that", Confidence: Certain, Node: "192.0.2.1"},
		{ID: "two", Severity: Warning, Summary: "It may be", Evidence: "such", Fix: "so", Confidence: Possible, Node: "192.0.2.2", Net: "blue"},
	}}
	want := `BROKEN   one: It is (certain)
   seen  this
    fix  that

WARNING  two [192.0.2.2] [network blue]: It may be (possible)
   seen  such
    fix  so

2 findings; mend the first, and look again. Checked in 0s, 1 peer: a
`
	if got := text(ill); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	laidOut = false
	want = `BROKEN   one: It is (certain); seen: this; fix: that
WARNING  two [192.0.2.2] [network blue]: It may be (possible); seen: such; fix: so
2 findings; mend the first, and look again. Checked in 0s, 1 peer: a
`
	if got := text(ill); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}

	dir := t.TempDir()
	const owner = 65534
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	if err := ill.Keep(dir); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, FileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info, err)
	}
	if of := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 && of.Uid != owner {
		t.Errorf("it belongs to user %d, want the directory's %d", of.Uid, owner)
	}
	if got, err := ReadReport(dir); err != nil || !reflect.DeepEqual(got, ill) {
		t.Errorf("read back: %+v, %v", got, err)
	}
	if err := ill.Keep(filepath.Join(dir, "nowhere")); err != nil {
		t.Error(err)
	}

	both := Merge([]*Report{well, ill, blind})
	if len(both.Findings) != 2 || both.Peers != 3 || !slices.Equal(both.Checked, []string{"a", "b"}) || len(both.Unchecked) != 3 || both.Exit() != ExitBroken {
		t.Errorf("merged: %+v", both)
	}
}

func TestMend(t *testing.T) {
	did := ""
	r := &Report{Findings: []Finding{
		{ID: "one", Repair: &Repair{What: "do this", Do: func(context.Context) error { did += "1"; return nil }}},
		{ID: "two"},
		{ID: "three", Repair: &Repair{What: "do that", Do: func(context.Context) error { did += "3"; return nil }}},
	}}
	var said bytes.Buffer
	changed, err := r.Mend(t.Context(), &said, func(question string) bool { return question == "three: Do that?" })
	if err != nil || !changed || did != "3" || said.String() != "three: done: do that\n" {
		t.Errorf("%v, %v, did %q, said %q", changed, err, did, said.String())
	}
	said.Reset()
	if changed, err := (&Report{Findings: r.Findings[1:2]}).Mend(t.Context(), &said, nil); changed || err != nil || said.Len() == 0 {
		t.Errorf("nothing to mend: %v, %v, %q", changed, err, said.String())
	}
}
