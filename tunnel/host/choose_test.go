//go:build linux

package host

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestCandidates(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for _, w := range []struct {
		program string // installed on top of those before
		nft     bool
		want    string
	}{
		{want: "[nftables]"},
		{program: "iptables", want: "[iptables nftables]"},
		{nft: true, want: "[nftables iptables]"},
		{program: "ip6tables-legacy", want: "[iptables nftables]"},
		{program: "iptables-legacy", want: "[iptables nftables iptables-legacy]"},
		{nft: true, want: "[nftables iptables iptables-legacy]"},
	} {
		if w.program != "" {
			if err := os.WriteFile(filepath.Join(dir, w.program), []byte("#!/bin/sh\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if got := fmt.Sprint(candidates(w.nft, false)); got != w.want {
			t.Errorf("%+v: %s", w, got)
		}
	}
}

// lacking is a part that a kernel may have been built without, and the system call that it refuses then.
type lacking struct {
	what     string
	number   uint32 // of the system call
	argument int
	value    uint32
	errno    unix.Errno
	second   int // another argument
	also     uint32
}

var (
	lacksNFTables = []lacking{{"nf_tables", unix.SYS_SOCKET, 0, unix.AF_NETLINK, unix.EPROTONOSUPPORT, 2, unix.NETLINK_NETFILTER}}
	lacksIPTables = []lacking{
		{"ip_tables", unix.SYS_GETSOCKOPT, 1, unix.IPPROTO_IP, unix.ENOPROTOOPT, 2, 64},    // IPT_SO_GET_INFO
		{"ip6_tables", unix.SYS_GETSOCKOPT, 1, unix.IPPROTO_IPV6, unix.ENOPROTOOPT, 2, 64}, // IP6T_SO_GET_INFO
	}
)

// onKernelWithout runs f, and what that starts, on a thread whose kernel lacks some parts, in the namespace of the caller.
func onKernelWithout(t *testing.T, parts []lacking, f func()) {
	t.Helper()
	done := make(chan struct{})
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Errorf("enter the namespace: %v", err)
			return
		}
		for _, p := range parts {
			if err := p.refuse(); err != nil {
				t.Errorf("refuse %s: %v", p.what, err)
				return
			}
		}
		f()
	}()
	<-done
}

func (l lacking) refuse() error {
	load := func(offset int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(offset)}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: skip, K: value}
	}
	argument := func(n int) int { return 16 + 8*n } // struct seccomp_data of linux/seccomp.h; little-endian
	const allow, errno = 0x7fff0000, 0x00050000     // SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
	program := []unix.SockFilter{
		load(0), unless(l.number, 5),
		load(argument(l.argument)), unless(l.value, 3),
		load(argument(l.second)), unless(l.also, 1),
		{Code: unix.BPF_RET, K: errno | uint32(l.errno)},
		{Code: unix.BPF_RET, K: allow},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, 1 /* SECCOMP_SET_MODE_FILTER */, 0, uintptr(unsafe.Pointer(&filter)))
	if e != 0 {
		return e
	}
	return nil
}

// programs is a PATH with the programs of iptables that a host has, by the names that it has them by. Behind a program's
// name there may be a case of the shell's, of arguments that it refuses.
func programs(t *testing.T, names map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, program := range names {
		program, refuse, _ := strings.Cut(program, " ")
		path, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		if refuse != "" {
			script := "#!/bin/sh\ncase \"$*\" in " + refuse + " ;; esac\nexec " + path + " \"$@\"\n"
			if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What this kernel refuses to one tool is put in with another, and what it refuses to all of them the daemon runs
// without, and says so.
func TestToolsStandIn(t *testing.T) {
	nftOnly := map[string]string{"iptables": "iptables-nft", "ip6tables": "ip6tables-nft"}
	legacyOnly := map[string]string{"iptables": "iptables-legacy", "ip6tables": "ip6tables-legacy"}
	both := map[string]string{"iptables": "iptables-nft", "ip6tables": "ip6tables-nft", "iptables-legacy": "iptables-legacy", "ip6tables-legacy": "ip6tables-legacy"}
	// A kernel that has nf_tables and not nft_compat: iptables over nftables can do without for everything but extensions.
	noExtensions := make(map[string]string)
	for name, program := range nftOnly {
		noExtensions[name] = program + " *' -A '*' -m '*) echo 'Warning: Extension comment revision 0 not supported, missing kernel module?' >&2; exit 4"
	}
	noNAT := make(map[string]string)
	for name, program := range legacyOnly {
		noNAT[name] = program + " *'-t nat'*) echo \"" + name + " v1.8.9 (legacy): can't initialize " + name + " table \\`nat': Table does not exist (do you need to insmod?)\" >&2; exit 3"
	}
	for _, w := range []struct {
		name     string
		lacks    []lacking
		programs map[string]string
		nft      bool
		has      string // the tool that has the rules in the end
		forward  int    // rules of IPv4 there
		masq     int
		warns    []string // parted by |; each twice, for both families
	}{
		{name: "iptables without ip_tables", lacks: lacksIPTables, programs: legacyOnly, has: "nftables", forward: 2, masq: 6, warns: []string{"nftables has|iptables does not work here|do you need to insmod"}},
		{name: "iptables over nftables without nf_tables", lacks: lacksNFTables, programs: both, has: "iptables-legacy", forward: 2, masq: 6, warns: []string{"iptables-legacy has|as iptables does not work here|Protocol not supported"}},
		{name: "nftables asked for, without nf_tables", lacks: lacksNFTables, programs: both, nft: true, has: "iptables-legacy", forward: 2, masq: 6, warns: []string{"iptables-legacy has|as nftables does not work here|protocol not supported"}},
		{name: "iptables over nftables without nft_compat", programs: noExtensions, has: "nftables", forward: 2, masq: 6, warns: []string{"nftables has|missing kernel module"}},
		{name: "no NAT", lacks: lacksNFTables, programs: noNAT, has: "iptables", forward: 2, warns: []string{"no masquerade|no answer finds the way|`nat': Table does not exist|protocol not supported"}},
		{name: "neither", lacks: slices.Concat(lacksNFTables, lacksIPTables), programs: both, warns: []string{
			"no forward rules|it drops the overlay's packets too|let NETWORK pass there|Protocol not supported|do you need to insmod", "no masquerade|nft_masq"}},
		{name: "no program, and no nf_tables", lacks: lacksNFTables, warns: []string{"no forward rules|iptables installed|protocol not supported", "no masquerade"}},
	} {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			openTestTUN(t, "muslin0")
			for _, tool := range []string{"iptables-nft", "ip6tables-nft"} { // which leaves the table behind
				run(t, tool+" -N x; "+tool+" -X x; "+tool+" -t nat -N x; "+tool+" -t nat -X x")
			}
			before, path := snapshot(t), os.Getenv("PATH")
			c := config6(t.TempDir())
			c.UseNFTables = w.nft
			var s *State
			onKernelWithout(t, w.lacks, func() {
				t.Setenv("PATH", programs(t, w.programs)+":/usr/bin:/bin")
				var err error
				if s, err = Setup(c); err != nil {
					t.Errorf("Setup: %v", err)
				}
				t.Setenv("PATH", path)
			})
			if t.Failed() {
				return
			}
			if got := s.journal.tools(); got != w.has {
				t.Errorf("%q has the rules, want %q", got, w.has)
			}
			for _, six := range []bool{false, true} {
				forward, masq := rulesIn(t, w.has, six)
				if forward != w.forward || masq != w.masq {
					t.Errorf("IPv6 %v: %d and %d rules, want %d and %d", six, forward, masq, w.forward, w.masq)
				}
			}
			said := s.Warnings()
			if len(said) != 2*len(w.warns) {
				t.Errorf("warnings %q, want %d of each family", said, len(w.warns))
			}
			for _, network := range []string{c.Network.String(), c.Network6.String()} {
				for _, words := range w.warns {
					words = strings.ReplaceAll(words, "NETWORK", network)
					if !slices.ContainsFunc(said, func(s string) bool {
						return !strings.Contains(s, "\n") && !slices.ContainsFunc(strings.Split(words, "|"), func(word string) bool { return !strings.Contains(s, word) })
					}) {
						t.Errorf("%q: not in one of %q", words, said)
					}
				}
			}
			for i, f := range s.Features() {
				if on := []int{w.forward, w.masq}[i] > 0; f.On != on || !on && f.Reason == "" {
					t.Errorf("feature %+v", f)
				}
			}

			// The next daemon, after a kill, has the rules where they stand, and knows why.
			onKernelWithout(t, w.lacks, func() {
				t.Setenv("PATH", programs(t, w.programs)+":/usr/bin:/bin")
				next, err := Setup(c)
				if err != nil {
					t.Errorf("Setup again: %v", err)
				} else if again := next.Warnings(); len(again) != len(said) || next.journal.tools() != w.has {
					t.Errorf("%q, warnings %q; before %q", next.journal.tools(), again, said)
				}
				if _, err := Cleanup(c.StateDir, nil); err != nil {
					t.Errorf("Cleanup: %v", err)
				}
				t.Setenv("PATH", path)
			})
			if err := s.Undo(); err != nil { // what Cleanup leaves to who holds the TUN
				t.Errorf("Undo: %v", err)
			}
			wantSame(t, before)
		})
	}
}

// rulesIn counts the rules of one family that a tool has.
func rulesIn(t *testing.T, tool string, six bool) (forward, masq int) {
	t.Helper()
	command, family := "iptables", "ip"
	if six {
		command, family = "ip6tables", "ip6"
	}
	var listing string
	switch tool {
	case "":
		return 0, 0
	case "nftables":
		listing = run(t, "nft list table "+family+" muslin")
		for line := range strings.Lines(listing) {
			switch {
			case strings.HasSuffix(line, "accept\n"):
				forward++
			case strings.Contains(line, "counter"):
				masq++
			}
		}
		return forward, masq
	case "iptables-legacy":
		command += "-legacy"
	case "iptables":
		command += "-legacy" // in the tests here it is
	}
	listing = run(t, command+"-save")
	return strings.Count(listing, "-A MUSLIN-FWD"), strings.Count(listing, "-A MUSLIN-POSTRTG")
}
