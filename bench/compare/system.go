//go:build linux

package compare

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"muslin/bench/lab"
)

// System is one way of joining the pods of two hosts.
type System interface {
	// Entry names the system and says what it is. It has neither Version nor MTU yet.
	Entry() Entry
	// Setup joins the two hosts of a fresh lab, and gives each a pod with AddPod. It need not wait until the
	// pods reach each other, and takes nothing away: that is the lab's Close. An error that wraps ErrMissing
	// says what to install.
	Setup(ctx context.Context, l *lab.Lab) (Joined, error)
}

// ErrMissing says that a system cannot be measured because a program is not installed.
var ErrMissing = errors.New("not installed")

// Joined is a system that stands.
type Joined struct {
	Version string      // as the program says it; empty: the kernel's
	Notes   []string    // what a reader of its figures has to know
	Daemons []*lab.Proc // whose processor time counts as the system's
	// Settled, unless nil, is asked until it reports true before anything is measured, for what goes on
	// changing after the first packet got through.
	Settled func(context.Context) (bool, error)
}

// Every lab has the same addresses: host i has the pods' subnet 10.244.i.0/24.
const podNetwork = "10.244.0.0/16"

func subnet(h *lab.Host) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(h.Number), 0}), 24)
}

// other is the host at the far end.
func other(l *lab.Lab, h *lab.Host) *lab.Host { return l.Host(3 - h.Number) }

// addPod gives the host its pod, behind a bridge with the subnet's first address, and lets the host forward.
func addPod(ctx context.Context, h *lab.Host, mtu int) error {
	s := subnet(h)
	if _, err := h.AddPod(ctx, "a", lab.PodNetwork{Gateway: netip.PrefixFrom(s.Addr().Next(), s.Bits()), MTU: mtu}); err != nil {
		return err
	}
	return h.Sysctl("net/ipv4/ip_forward", "1")
}

// addPods is addPod on both hosts.
func addPods(ctx context.Context, l *lab.Lab, mtu int) error {
	for _, h := range l.Hosts() {
		if err := addPod(ctx, h, mtu); err != nil {
			return err
		}
	}
	return nil
}

// ip runs ip(8) in the host's namespace.
func ip(ctx context.Context, h *lab.Host, format string, args ...any) error {
	_, err := h.Run(ctx, append([]string{"ip"}, strings.Fields(fmt.Sprintf(format, args...))...)...)
	return err
}

// deviceMTU waits until the host has the device, which a daemon makes, and returns its MTU.
func deviceMTU(ctx context.Context, h *lab.Host, device string, daemon *lab.Proc) (mtu int, err error) {
	return mtu, until(ctx, daemon, "device "+device, func() (bool, error) {
		out, err := h.Output(ctx, "cat", "/sys/class/net/"+device+"/mtu")
		if err != nil {
			return false, nil
		}
		_, err = fmt.Sscan(out, &mtu)
		return true, err
	})
}

// missing returns nil if all programs are there, or an error that wraps ErrMissing.
func missing(tools ...string) error {
	if err := lab.MissingTools(tools...); err != nil {
		return fmt.Errorf("%w: %w", ErrMissing, err)
	}
	return nil
}

// versionLine runs a program for its version and returns the first line that it prints, to either output: the
// status is of no interest, since several programs report their version with one that is not 0.
func versionLine(ctx context.Context, args ...string) string {
	out, _ := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return strings.TrimSpace(first)
}
