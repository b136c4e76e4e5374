//go:build linux && (amd64 || arm64)

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/bench/lab"
)

// This test binary is the launcher too, and the program that it launches, by its first argument.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "--profile":
		if err := run(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) > 1 && os.Args[1] == "try":
		tryAll()
		os.Exit(0)
	case len(os.Args) > 2 && os.Args[1] == "harm":
		harms[os.Args[2]]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// launched runs this binary with args in a network namespace of its own, as the profile's kernel has it, or with
// an empty profile as the running one has it.
func launched(t *testing.T, profile string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	command := append([]string{"/proc/self/exe"}, args...)
	if profile != "" {
		command = append([]string{"/proc/self/exe", "--profile", profile, "--"}, command...)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// outcomes are what became of each row's try: an errno's name, "ok", or what tries.go says.
func outcomes(t *testing.T, profile string) map[string]string {
	t.Helper()
	out, errs, err := launched(t, profile, "try")
	if err != nil {
		t.Fatalf("profile %q: %v: %s", profile, err, errs)
	}
	all := make(map[string]string)
	for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
		name, outcome, _ := strings.Cut(s.Text(), "\t")
		all[name] = outcome
	}
	return all
}

// refused is what a try says when the row is refused.
func (r row) refused() string {
	switch {
	case r.tunFlag != 0:
		return "ignored, not listed"
	case r.control != nil:
		return unix.ErrnoName(r.control.errno)
	case r.vnetGSO != 0:
		return "EINVAL"
	case r.path != nil:
		return "ENOENT"
	}
	return unix.ErrnoName(r.errno)
}

// Every row is refused by the profiles before it, and by no other: there the running kernel's own answer comes.
func TestEveryRow(t *testing.T) {
	t.Parallel()
	lab.RequireRoot(t)
	own := outcomes(t, "")
	for _, p := range profiles {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			got := outcomes(t, p.String())
			for _, r := range allRows() {
				if r.control != nil && r.control.fatal != "" {
					continue // TestHarm
				}
				want := own[r.name]
				switch {
				case r.control != nil && r.control.segments > 0 && (version{4, 18}).after(p):
					want = noSegments
				case r.since.after(p):
					want = r.refused()
				}
				if got[r.name] != want || want == "" {
					t.Errorf("%s (since %v): %q, want %q", r.name, r.since, got[r.name], want)
				}
			}
		})
	}
}

// The running kernel has most of the rows: otherwise a refusal shows nothing.
func TestRunningKernelDiffers(t *testing.T) {
	t.Parallel()
	lab.RequireRoot(t)
	var same []string
	own := outcomes(t, "")
	for _, r := range allRows() {
		if r.control != nil && r.control.fatal != "" {
			continue
		}
		if own[r.name] == r.refused() {
			same = append(same, r.name)
		}
	}
	t.Logf("the running kernel refuses by itself: %s", strings.Join(same, ", "))
	for _, name := range []string{"getrandom", "memfd_create", "copy_file_range", "preadv2", "statx", "pidfd_open", "clone3", "openat2",
		"faccessat2", "SO_REUSEPORT", "SO_MEMINFO", "UDP_SEGMENT", "UDP_GRO, set", "IP_TOS for a single datagram", "IFF_MULTI_QUEUE",
		"IFF_NAPI", "/proc/thread-self"} {
		if slices.Contains(same, name) {
			t.Errorf("the running kernel refuses %s, so that these tests show nothing of it", name)
		}
	}
}

// What the older kernel would not refuse, but do wrong, ends the program.
func TestHarm(t *testing.T) {
	t.Parallel()
	lab.RequireRoot(t)
	for _, c := range []struct {
		profile, harm string
		killed        bool
		words         string
	}{
		{"4.4", "UDP_SEGMENT for a single call", true, "one long datagram"},
		{"4.18", "UDP_SEGMENT for a single call", false, ""},
		{"3.10", "second message of a batch", true, "message 1 of a sendmmsg"},
		{"4.4", "second message of a batch", false, ""},
	} {
		t.Run(c.profile+", "+c.harm, func(t *testing.T) {
			t.Parallel()
			_, said, err := launched(t, c.profile, "harm", c.harm)
			killed := err != nil && strings.Contains(err.Error(), "killed")
			if killed != c.killed || !strings.Contains(said, c.words) || !killed && err != nil {
				t.Errorf("%v: %s; want it killed: %v, with a word about %q", err, said, c.killed, c.words)
			}
		})
	}
}

// The program has the launcher's process: its number, its status, its end by a signal.
func TestInPlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ script, want string }{
		{"exit 7", "exit status 7"},
		{"kill -TERM $$", "signal: terminated"},
	} {
		cmd := exec.Command("/proc/self/exe", "--profile", "3.10", "--", "sh", "-c", "echo $$; "+c.script)
		out, err := cmd.Output()
		if err == nil || err.Error() != c.want || strings.TrimSpace(string(out)) != fmt.Sprint(cmd.Process.Pid) {
			t.Errorf("%s: %v, process %s; want %s and process %d", c.script, err, out, c.want, cmd.Process.Pid)
		}
	}
}

// What the program starts is refused the same, and the supervisor outlives the program for it.
func TestDescendants(t *testing.T) {
	t.Parallel()
	lab.RequireRoot(t)
	out, errs, err := launched(t, "3.10", "harm", "child that outlives its parent")
	if err != nil || !strings.Contains(out, "child: EINVAL") {
		t.Errorf("%v: %q %q; want the child to meet EINVAL", err, out, errs)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--profile", "3.11", "--", "true"}, {"--", "true"}, {"--profile", "3.10"}, {"--profile", "3.10", "--", "/nowhere"},
	} {
		if err := run(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// docs/kernels.md shows the table as it is.
func TestDocs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), markdown()) {
		t.Errorf("docs/kernels.md lacks the table that `oldkernel --list` prints:\n%s", markdown())
	}
}
