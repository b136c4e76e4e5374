//go:build linux

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// rights is a way to start the daemon, and what is left to it once it runs.
type rights struct {
	name string
	uid  int
	wrap []string // command in front of `muslin run`
	file bool     // the capabilities are the binary's file's
	nft  bool     // the network's config says nftables

	want  uint64 // effective and permitted capabilities, and the bounding set unless the file has them
	child uint64 // inheritable and ambient: what a program gets that it starts
	why   []string

	tool string // that shows and changes its rules
}

const (
	nobody = 65534 // the user that some of these daemons run as

	capAdmin  = 1 << unix.CAP_NET_ADMIN
	capRaw    = 1 << unix.CAP_NET_RAW
	capSearch = 1 << unix.CAP_DAC_READ_SEARCH
)

// openTUN makes a TUN device that everybody may open, as udev's rules do.
var openTUN = []string{"sh", "-c", `mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec "$@"`, "sh"}

var asNobody = append(openTUN, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")

// withOnly gives just these capabilities, as systemd does for User= and AmbientCapabilities=.
func withOnly(capabilities string) []string {
	return append(asNobody, "--no-new-privs",
		"--inh-caps", "-all,"+capabilities, "--ambient-caps", "-all,"+capabilities, "--bounding-set", "-all,"+capabilities)
}

// legacy puts iptables-legacy in the place of iptables, with a lock file as docs/examples/muslin.tmpfiles.conf
// makes it.
var legacy = []string{"sh", "-c", `mount -t tmpfs -o mode=755 none /run && install -m 640 -g 65534 /dev/null /run/xtables.lock &&
mount -t tmpfs -o mode=755 none /mnt && ln -s "$(command -v iptables-legacy)" /mnt/iptables && export PATH="/mnt:$PATH" && exec "$@"`, "sh"}

var starts = []rights{
	{name: "root, nftables", nft: true, tool: "nft", want: capAdmin, why: []string{"CAP_NET_ADMIN", "routes"}},
	{name: "root, iptables", tool: "iptables", want: capAdmin, why: []string{"CAP_NET_ADMIN", "routes"}},
	{
		name: "root, iptables-legacy", tool: "iptables-legacy", wrap: legacy, want: capAdmin | capRaw,
		why: []string{"CAP_NET_ADMIN", "CAP_NET_RAW", "iptables-legacy"},
	},
	{
		name: "a user of its own", tool: "iptables", uid: nobody, wrap: withOnly("+net_admin"),
		want: capAdmin, child: capAdmin, why: []string{"CAP_NET_ADMIN", "routes"},
	},
	{
		name: "a user of its own, iptables-legacy", tool: "iptables-legacy", uid: nobody,
		wrap: slices.Concat(legacy, withOnly("+net_admin,+net_raw")),
		want: capAdmin | capRaw, child: capAdmin | capRaw, why: []string{"CAP_NET_ADMIN", "CAP_NET_RAW", "iptables-legacy"},
	},
	{
		name: "a user of its own, the file's capabilities", tool: "iptables", uid: nobody, wrap: asNobody, file: true,
		want: capAdmin, child: capAdmin, why: []string{"CAP_NET_ADMIN", "routes"},
	},
}

// Whoever it starts as, the daemon keeps nothing that it does not need, in any of its threads, and still does
// all of its work: it carries packets, puts back a rule that was removed, and undoes its changes at the end.
//
//	p1a ── h1 (muslin, embedded etcd) ── br0 ── h2 (muslin) ── p2a
func TestPrivileges(t *testing.T) {
	t.Parallel()
	for _, r := range starts {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			if r.file && profile != "" {
				t.Skip("a user other than root plays an older kernel by no_new_privs alone, under which a file's capabilities do not count")
			}
			lab.RequireTool(t, r.tool, "setpriv")
			l := newLab(t, 2)
			leaveIll(l, "the other node ends with its etcd")
			if err := os.Chmod(l.Dir(), 0o755); err != nil {
				t.Fatal(err)
			}
			h := l.Host(1)
			m1 := r.start(t, h, "--embedded-etcd", "--net-config-path", r.config(t, l))
			m2 := r.start(t, l.Host(2), "--etcd-endpoints", endpoint(h))
			p1, p2 := addPod(t, m1, "a"), addPod(t, m2, "a")
			waitPeers(t, m1, 1)
			waitPeers(t, m2, 1)
			expectPing(t, p1.Node, p2.Addr, 3)

			r.expectThreads(t, m1)
			r.expectStatus(t, m1)

			runIn(t, h.Node, r.removeRule()...)
			eventually(t, 10*time.Second, func() error { return r.hasRule(t, h, true) })
			expectPing(t, p2.Node, p1.Addr, 3)

			if err := m1.Stop(); err != nil {
				t.Error(err)
			}
			if err := r.hasRule(t, h, false); err != nil {
				t.Error(err)
			}
			if forward := must(h.ReadSysctl("net/ipv4/ip_forward"))(t); forward != "0" {
				t.Errorf("net.ipv4.ip_forward is %s after the end", forward)
			}
			if _, err := os.Stat(filepath.Join(m1.StateDir, "host-changes.json")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the journal of host changes after the end: %v", err)
			}
		})
	}
}

// config is the network's, in a file.
func (r *rights) config(t *testing.T, l *lab.Lab) string {
	t.Helper()
	path := filepath.Join(l.Dir(), "config.json")
	config := fmt.Sprintf(`{"Network":%q,"EnableNFTables":%t,"Backend":{"Type":"vxlan"}}`, network, r.nft)
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// start starts the daemon with these rights, and waits until it is ready.
func (r *rights) start(t *testing.T, h *lab.Host, flags ...string) *lab.Muslin {
	t.Helper()
	program := labtest.Bin
	if r.file {
		program = filepath.Join(h.Dir, "muslin")
		copyWithCapability(t, program)
	}
	if err := os.Chown(h.Dir, r.uid, r.uid); err != nil {
		t.Fatal(err)
	}
	m := must(h.LaunchMuslinUnder(r.wrap, program, append(flags, "--iptables-resync", "1")...))(t)
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// copyWithCapability copies the binary under test and does what `setcap cap_net_admin+ep` does.
func copyWithCapability(t *testing.T, path string) {
	t.Helper()
	// struct vfs_cap_data of linux/capability.h: revision 2 and the effective bit, then permitted and
	// inheritable of capabilities 0 to 31, then of 32 to 63.
	attr := make([]byte, 20)
	binary.LittleEndian.PutUint32(attr, 2<<24|1)
	binary.LittleEndian.PutUint32(attr[4:], capAdmin)
	content := must(os.ReadFile(labtest.Bin))(t)
	if err := errors.Join(os.WriteFile(path, content, 0o755), unix.Setxattr(path, "security.capability", attr, 0)); err != nil {
		t.Fatal(err)
	}
}

// expectThreads looks at every thread of the daemon as the kernel has it (proc(5)).
func (r *rights) expectThreads(t *testing.T, m *lab.Muslin) {
	t.Helper()
	want := map[string]uint64{"CapEff": r.want, "CapPrm": r.want, "CapBnd": r.want, "CapInh": r.child, "CapAmb": r.child}
	if r.file {
		delete(want, "CapBnd") // only CAP_SETPCAP could reduce it
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", m.PID()))
	if err != nil || len(threads) < 4 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	for _, path := range threads {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // has ended
		}
		status := make(map[string]string)
		for line := range lines(string(content)) {
			key, value, _ := strings.Cut(line, ":")
			status[key] = strings.TrimSpace(value)
		}
		for key, caps := range want {
			if got, err := strconv.ParseUint(status[key], 16, 64); err != nil || got != caps {
				t.Errorf("%s: %s %s, want %#x", path, key, status[key], caps)
			}
		}
		if status["NoNewPrivs"] != "1" || !strings.HasPrefix(status["Uid"], strconv.Itoa(r.uid)+"\t") {
			t.Errorf("%s: NoNewPrivs %s, Uid %s; want 1, %d", path, status["NoNewPrivs"], status["Uid"], r.uid)
		}
	}
}

// expectStatus wants the daemon to say the same of itself, and what it keeps its rights for.
func (r *rights) expectStatus(t *testing.T, m *lab.Muslin) {
	t.Helper()
	p := status(t, m).Privileges
	if p.UID != r.uid || !p.NoNewPrivs || p.Error != "" {
		t.Errorf("status says %+v", p)
	}
	expectWords(t, fmt.Sprint(p.Capabilities), r.why...)
	text := must(m.Command(t.Context(), "status"))(t)
	expectWords(t, text, fmt.Sprintf("%d with CAP_", r.uid), "CAP_NET_ADMIN")
}

func (r *rights) removeRule() []string {
	if r.nft {
		return []string{"nft", "delete", "table", "ip", "muslin"}
	}
	return []string{r.tool, "-D", "FORWARD", "-m", "comment", "--comment", "muslin forward", "-j", "MUSLIN-FWD"}
}

// hasRule returns an error unless the daemon's rule is there, or is not.
func (r *rights) hasRule(t *testing.T, h *lab.Host, want bool) error {
	list := []string{r.tool, "-S", "FORWARD"}
	rule := "-j MUSLIN-FWD"
	if r.nft {
		list, rule = []string{"nft", "list", "ruleset"}, "table ip muslin"
	}
	out, err := h.Run(t.Context(), list...)
	if err == nil && strings.Contains(out, rule) != want {
		err = fmt.Errorf("%q among the rules: %t, want %t:\n%s", rule, !want, want, out)
	}
	return err
}

// A file that only another user may read, and that is read again while the daemon runs, is the one reason for
// root to keep a right beyond the network's.
//
//	h1 (muslin) ── br0
func TestPrivilegesForOthersFiles(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	h := l.Host(1)
	own := leaseOf(h)
	stopAll(t, startStatic(t, h, "udp", []leased{own})) // which writes the file
	peers := filepath.Join(h.Dir, "peers.json")
	if err := errors.Join(os.Chown(peers, nobody, nobody), os.Chmod(peers, 0o600)); err != nil {
		t.Fatal(err)
	}
	m := startMuslin(t, h, "--peers-file", peers, "--network", network, "--backend", "udp")
	r := rights{want: capAdmin | capSearch, why: []string{"CAP_DAC_READ_SEARCH", "peers.json"}}
	r.expectThreads(t, m)
	r.expectStatus(t, m)
}
