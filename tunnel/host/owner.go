//go:build linux

package host

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// Owner is who holds a UDP port: a process, or a device of the kernel.
type Owner struct {
	PID     int            // 0 when it is not a process that can be seen
	Command string         // the process's name, as /proc/PID/comm has it
	Device  string         // name of the kernel's device, "" for a process
	Kind    string         // the device's type: "vxlan" or "geneve"
	Addr    netip.AddrPort // what it is bound to
}

// String is a phrase for a sentence: `process 811 (flanneld)`.
func (o Owner) String() string {
	switch {
	case o.Device != "":
		return fmt.Sprintf("the kernel's %s device %s", o.Kind, o.Device)
	case o.PID != 0:
		return fmt.Sprintf("process %d (%s)", o.PID, o.Command)
	}
	return "a socket of the kernel or of a process that cannot be seen from here"
}

// PortOwner finds who keeps addr's UDP port from being bound: a socket on that port whose address is the
// same or the wildcard, or any when addr is the wildcard. It looks in /proc, so a process in another PID
// namespace stays unnamed.
func PortOwner(addr netip.AddrPort) (Owner, bool) {
	for _, table := range []string{"udp", "udp6"} {
		for _, s := range udpSockets(table) {
			if !collide(s.addr, addr) {
				continue
			}
			owner := Owner{Addr: s.addr}
			if pid, ok := socketHolder(s.inode); ok {
				owner.PID, owner.Command = pid, command(pid)
			} else {
				owner.Device, owner.Kind = tunnelOnPort(addr.Port())
			}
			return owner, true
		}
	}
	return Owner{}, false
}

func collide(a, b netip.AddrPort) bool {
	x, y := a.Addr().Unmap(), b.Addr().Unmap()
	return a.Port() == b.Port() && (x == y || x.IsUnspecified() || y.IsUnspecified())
}

type udpSocket struct {
	addr  netip.AddrPort
	inode string
	drops uint64
}

// procNet opens a table of the calling thread's network namespace. /proc/net is the one of the process's
// first thread; /proc/thread-self exists since 3.17 (proc(5)).
func procNet(name string) (*os.File, error) {
	if f, err := os.Open("/proc/thread-self/net/" + name); err == nil {
		return f, nil
	}
	return os.Open("/proc/net/" + name)
}

func udpSockets(table string) []udpSocket {
	f, err := procNet(table)
	if err != nil {
		return nil
	}
	defer f.Close()
	return readUDPSockets(f)
}

func readUDPSockets(f io.Reader) []udpSocket {
	var out []udpSocket
	for _, line := range readLines(f) {
		// sl local_address rem_address st queues tr:when retrnsmt uid timeout inode ref pointer drops
		fields := strings.Fields(line)
		if len(fields) < 10 {
			continue
		}
		if addr, ok := parseProcAddr(fields[1]); ok {
			s := udpSocket{addr: addr, inode: fields[9]}
			if len(fields) > 12 {
				s.drops, _ = strconv.ParseUint(fields[12], 10, 64)
			}
			out = append(out, s)
		}
	}
	return out
}

func readLines(f io.Reader) []string {
	var out []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		out = append(out, lines.Text())
	}
	return out
}

// parseProcAddr reads "0100007F:2118": the address as 32-bit words in the machine's byte order, then the
// port as a number.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	ip, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.AddrPort{}, false
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip, uint16(p)), true
}

func socketHolder(inode string) (pid int, ok bool) {
	want := "socket:[" + inode + "]"
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && link == want {
			return pidOf(fd), true
		}
	}
	return 0, false
}

// tunHolder finds a process of this network namespace that has the TUN attached. A kernel that does not
// show the device's name in fdinfo ("iff:") names no holder. Names repeat between namespaces, hence the
// look at each thread's.
func tunHolder(name string) (pid int, ok bool) {
	here := NetNS()
	if here == "" {
		return 0, false
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err != nil || link != "/dev/net/tun" {
			continue
		}
		info, err := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
		if err != nil || !hasInterface(string(info), name) {
			continue
		}
		pid := pidOf(fd)
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/net", pid))
		for _, t := range tasks {
			if ns, err := os.Readlink(t); err == nil && ns == here {
				return pid, true
			}
		}
	}
	return 0, false
}

func hasInterface(fdinfo, name string) bool {
	for line := range strings.Lines(fdinfo) {
		if rest, ok := strings.CutPrefix(line, "iff:"); ok && strings.TrimSpace(rest) == name {
			return true
		}
	}
	return false
}

// pidOf takes the process out of "/proc/811/fd/7".
func pidOf(path string) int {
	pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
	return pid
}

func command(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "gone by now"
	}
	return strings.TrimSpace(string(b))
}

// tunnelOnPort names a kernel tunnel device that receives on a UDP port.
func tunnelOnPort(port uint16) (name, kind string) {
	all, err := links()
	if err != nil {
		return "", ""
	}
	for _, l := range all {
		switch d := l.(type) {
		case *netlink.Vxlan:
			if d.Port == int(port) {
				return d.Name, "vxlan"
			}
		case *netlink.Geneve:
			if d.Dport == port {
				return d.Name, "geneve"
			}
		}
	}
	return "", ""
}
