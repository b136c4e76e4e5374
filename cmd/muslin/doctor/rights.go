package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"muslin/lease"
	"muslin/tunnel/kernel"
)

// What a daemon cannot work without, whatever else is well.
var rightsChecks = []Check{
	{Name: "capabilities", Run: checkCapabilities},
	{Name: "tun-device", Run: checkTUN},
}

// checkCapabilities is about a host, or a container, in which root may not change the network.
func checkCapabilities(_ context.Context, p *Patient) []Finding {
	f := Finding{
		ID: "capability-missing", Severity: Broken, Confidence: Certain, Explains: append([]string{"tun-device-missing"}, unstarted...),
		Fix: "systemctl edit muslin # [Service] AmbientCapabilities=CAP_NET_ADMIN, and start it again; of a container: --cap-add=NET_ADMIN",
	}
	if p.Status != nil {
		if has, ok := netAdminOf(p.Daemon.PID); ok && !has {
			f.Summary = "the daemon has no CAP_NET_ADMIN: it cannot put back what somebody removes"
			f.Evidence = fmt.Sprintf("CapEff of process %d in /proc/%[1]d/status", p.Daemon.PID)
			return []Finding{f}
		}
		return nil
	}
	probe := kernel.NetAdmin()
	switch {
	case probe.Answer != kernel.No:
		return nil
	case os.Geteuid() != 0:
		p.CannotTell("capabilities", errors.New("run this as the daemon's user, or as root"))
		return nil
	}
	f.Summary = "root has no CAP_NET_ADMIN here: no daemon can start"
	f.Evidence = probe.Reason
	return []Finding{f}
}

// netAdminOf reports whether a process has CAP_NET_ADMIN; not ok: it cannot be seen.
func netAdminOf(pid int) (has, ok bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false, false
	}
	for line := range strings.Lines(string(data)) {
		if value, found := strings.CutPrefix(line, "CapEff:"); found {
			set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return set&(1<<unix.CAP_NET_ADMIN) != 0, err == nil
		}
	}
	return false, false
}

// checkTUN is about a host in which no TUN device can be made.
func checkTUN(_ context.Context, p *Patient) []Finding {
	backend := p.Local.Backend
	if backend == lease.BackendHostGW || p.flannelServes() || p.Running() && p.Local.TUN == "" {
		return nil
	}
	if p.Running() && backend == lease.BackendWireGuard {
		return nil // by the kernel's, perhaps
	}
	probe := kernel.TUNDevice(kernel.TUNPath)
	if probe.Answer == kernel.Yes && !p.Running() && kernel.NetAdmin().Answer == kernel.Yes {
		probe = kernel.TUNCreate(kernel.TUNPath)
	}
	if probe.Answer != kernel.No || os.Geteuid() != 0 {
		return nil
	}
	f := broken("tun-device-missing", "no TUN device can be made: no daemon can start", probe.Reason, "modprobe tun # or give the container --device="+kernel.TUNPath)
	f.Explains = unstarted
	if p.Running() {
		f.Severity, f.Summary = Warning, "no TUN device can be made: the daemon that runs has its own, and the next start will fail"
	}
	return []Finding{f}
}
