//go:build linux

package privilege

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/bench/lab"
)

// A process reduces itself for good, so each case is a process of its own: this test binary again.
const caseVariable = "MUSLIN_PRIVILEGE_CASE"

// report is what such a process says of itself.
type report struct {
	Threads []State // all of them, read by the parent's rules
	Child   string  // the Cap lines and NoNewPrivs of a program that it started
	Err     string
}

func TestMain(m *testing.M) {
	name := os.Getenv(caseVariable)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := json.NewEncoder(os.Stdout).Encode(runCase(name)); err != nil {
		panic(err)
	}
}

var cases = map[string]func() error{
	"reduce":               func() error { return Reduce(Of(unix.CAP_NET_ADMIN), false) },
	"reduce with programs": func() error { return Reduce(Of(unix.CAP_NET_ADMIN), true) },
	"inherit":              func() error { return Inherit(Of(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW)) },
	"regain": func() error {
		if err := Reduce(Of(unix.CAP_NET_ADMIN), false); err != nil {
			return err
		}
		return capset(Of(unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN), 0)
	},
}

// runCase has several threads besides when the case runs.
func runCase(name string) (r report) {
	var up sync.WaitGroup
	done := make(chan struct{})
	defer close(done)
	for range 8 {
		up.Add(1)
		go func() {
			runtime.LockOSThread()
			up.Done()
			<-done
		}()
	}
	up.Wait()
	if err := cases[name](); err != nil {
		r.Err = err.Error()
	}
	tasks, _ := filepath.Glob("/proc/self/task/*/status")
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		s, err := parseStatus(string(text))
		if err != nil {
			r.Err += err.Error()
		}
		s.NoNewPrivs = strings.Contains(string(text), "NoNewPrivs:\t1")
		r.Threads = append(r.Threads, s)
	}
	child, err := exec.Command("cat", "/proc/self/status").Output()
	if err != nil {
		r.Err += err.Error()
	}
	r.Child = string(child)
	return r
}

func start(t *testing.T, name string, wrap ...string) report {
	t.Helper()
	lab.RequireRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(wrap, self)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), caseVariable+"="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// cgo reports whether this test is built with it, as the race detector needs: then nothing can be reduced.
func cgo() bool {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPPID, 0, 0, 0)
	return errno == syscall.ENOTSUP
}

// asNobody runs a program as user 65534 with ambient capabilities, as systemd's User= and
// AmbientCapabilities= do.
func asNobody(t *testing.T, capabilities string) []string {
	t.Helper()
	lab.RequireTool(t, "setpriv")
	return []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
		"--inh-caps", capabilities, "--ambient-caps", capabilities}
}

func TestReduce(t *testing.T) {
	admin := Of(unix.CAP_NET_ADMIN)
	alone := State{Effective: admin, Permitted: admin, Bounding: admin, NoNewPrivs: true}
	passed := alone
	passed.Inheritable, passed.Ambient = admin, admin
	tests := []struct {
		name, what string
		wrap       []string
		want       State // of every thread; Bounding is not looked at where it is 0
		child      State
		err        string
	}{
		{name: "root", what: "reduce", want: alone, child: alone},
		{name: "root with programs", what: "reduce with programs", want: alone, child: alone},
		{name: "nothing comes back", what: "regain", want: alone, child: alone, err: "operation not permitted"},
		{
			name: "another user", what: "reduce", wrap: asNobody(t, "+net_admin,+net_raw"),
			want: State{Effective: admin, Permitted: admin, NoNewPrivs: true}, child: State{NoNewPrivs: true},
		},
		{
			name: "another user with programs", what: "reduce with programs", wrap: asNobody(t, "+net_admin,+net_raw"),
			want:  State{Effective: admin, Permitted: admin, Inheritable: admin, Ambient: admin, NoNewPrivs: true},
			child: State{Effective: admin, Permitted: admin, Inheritable: admin, Ambient: admin, NoNewPrivs: true},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, test.what, test.wrap...)
			if cgo() {
				if !strings.Contains(r.Err, ErrCgo.Error()) {
					t.Errorf("error %q, want %q", r.Err, ErrCgo)
				}
				return
			}
			if test.err == "" && r.Err != "" || !strings.Contains(r.Err, test.err) {
				t.Errorf("error %q, want %q", r.Err, test.err)
			}
			child, err := parseStatus(r.Child)
			if err != nil {
				t.Fatal(err)
			}
			child.NoNewPrivs = strings.Contains(r.Child, "NoNewPrivs:\t1")
			if test.want.Bounding == 0 {
				child.Bounding = 0
			}
			if child != test.child {
				t.Errorf("a program that it starts: %+v, want %+v", child, test.child)
			}
			if len(r.Threads) < 9 {
				t.Errorf("%d threads seen, want 9 or more", len(r.Threads))
			}
			for _, s := range r.Threads {
				if test.want.Bounding == 0 {
					s.Bounding = 0
				}
				if s != test.want {
					t.Errorf("a thread: %+v, want %+v", s, test.want)
				}
			}
		})
	}
}

// A program with capabilities on its file starts without an ambient set, and so would what it starts.
func TestInherit(t *testing.T) {
	lab.RequireRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "muslin-privilege-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	copied := filepath.Join(dir, "program")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(copied, content, 0o755)); err != nil {
		t.Fatal(err)
	}
	// struct vfs_cap_data of linux/capability.h, little-endian: revision 2 and the effective bit, then
	// permitted and inheritable of capabilities 0 to 31, then of 32 to 63.
	attr := []byte{1, 0, 0, 2, 0, 1 << (unix.CAP_NET_ADMIN - 8), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := unix.Setxattr(copied, "security.capability", attr, 0); err != nil {
		t.Fatal("setxattr security.capability:", err)
	}
	cmd := exec.Command("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", copied)
	cmd.Env = append(os.Environ(), caseVariable+"=inherit")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	if cgo() {
		if !strings.Contains(r.Err, ErrCgo.Error()) {
			t.Errorf("error %q, want %q", r.Err, ErrCgo)
		}
		return
	}
	child, err := parseStatus(r.Child)
	if want := Of(unix.CAP_NET_ADMIN); err != nil || r.Err != "" || child.Effective != want || child.Permitted != want {
		t.Errorf("a program that it starts: %+v, %v, %s; want %v effective", child, err, r.Err, want)
	}
}

func TestTryWithout(t *testing.T) {
	lab.RequireRoot(t)
	path := filepath.Join(t.TempDir(), "theirs")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	read := func() error {
		f, err := os.Open(path)
		if err == nil {
			f.Close()
		}
		return err
	}
	if err := TryWithout(Of(unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH), read); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("another user's file without the capabilities to read it: %v, want %v", err, fs.ErrPermission)
	}
	if err := TryWithout(Of(unix.CAP_NET_RAW), read); err != nil {
		t.Errorf("another user's file with them: %v", err)
	}
	// No thread has lost anything.
	for range 20 {
		var wg sync.WaitGroup
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if err := read(); err != nil {
				t.Error("afterwards:", err)
			}
		})
		wg.Wait()
	}
}

func TestParseStatus(t *testing.T) {
	const whole = "Name:\tmuslin\nCapInh:\t0000000000000000\nCapPrm:\t0000000000003000\nCapEff:\t0000000000001000\nCapBnd:\t000001ffffffffff\n"
	s, err := parseStatus(whole)
	want := State{Effective: Of(unix.CAP_NET_ADMIN), Permitted: Of(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW), Bounding: 1<<41 - 1}
	if err != nil || s != want {
		t.Errorf("before 4.3, without CapAmb: %+v, %v, want %+v", s, err, want)
	}
	if s, err := parseStatus(whole + "CapAmb:\t0000000000001000\n"); err != nil || s.Ambient != Of(unix.CAP_NET_ADMIN) {
		t.Errorf("with CapAmb: %+v, %v", s, err)
	}
	for _, bad := range []string{"", "Name:\tmuslin\n", strings.Replace(whole, "00003000", "xx", 1), strings.Replace(whole, "CapBnd", "CapOther", 1)} {
		if s, err := parseStatus(bad); err == nil {
			t.Errorf("%q is taken for %+v", bad, s)
		}
	}
}

func TestNames(t *testing.T) {
	for c, want := range map[int]string{unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_LAST_CAP: "CAP_CHECKPOINT_RESTORE", 63: "capability 63"} {
		if got := Name(c); got != want {
			t.Errorf("capability %d is %q, want %q", c, got, want)
		}
	}
	if got := Of(0, unix.CAP_NET_ADMIN, 63).List(); !slices.Equal(got, []int{0, 12, 63}) {
		t.Errorf("listed as %v", got)
	}
	if len(names) != unix.CAP_LAST_CAP+1 {
		t.Errorf("%d names for %d capabilities", len(names), unix.CAP_LAST_CAP+1)
	}
}
