package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/rescue"
	"muslin/lease"
)

var daemonChecks = []Check{
	{Name: "daemon", Essential: true, Run: checkDaemon},
	{Name: "version", Needs: NeedStatus, Run: checkVersion},
}

// muslinHere reports whether a daemon of muslin's has been started here before.
func (p *Patient) muslinHere() bool {
	if p.Memory != nil {
		return true
	}
	_, err := os.Stat(filepath.Join(p.Options.StateDir, "lock"))
	return err == nil
}

// flannelServes reports whether this is a node of flannel's: its vxlan device is there or a flanneld runs, no daemon of
// muslin's does, and none is meant to. Where one has run, the lease says whose the node is now; with a backend without MACs the
// flanneld that runs does.
func (p *Patient) flannelServes() bool {
	if p.Status != nil || p.Daemon.Silent || p.Flannel == nil {
		return false
	}
	if _, taken := p.rescued(); taken {
		return false
	}
	if !p.muslinHere() {
		return p.Flannel.Device != nil || p.Flannel.Daemon
	}
	if b := p.Local.Backend; p.Flannel.Device == nil && p.Flannel.Daemon && b != "" && b != lease.BackendVXLAN {
		return true
	}
	return p.flannelCarries() && p.Local.Lease != nil && p.Local.Lease.Attrs.MAC.String() == p.Flannel.Device.MAC
}

// checkDaemon is about a daemon that is not there, or does not answer.
func checkDaemon(ctx context.Context, p *Patient) []Finding {
	switch {
	case p.Status != nil && p.Status.State == control.StateFailed:
		f := broken("daemon-stopped", "the network does not run", strings.Join(p.Status.Warnings, "; "), "journalctl -u muslin -n 50")
		f.Explains = stopped
		return []Finding{f}
	case p.Status != nil && p.Status.State != control.StateRunning:
		f := broken("daemon-waiting", "the daemon does not carry packets yet: "+p.Status.State, "state in muslin status: "+p.Status.State, "journalctl -u muslin -n 50")
		f.Confidence, f.Explains = Likely, stopped
		return []Finding{f}
	case p.Status != nil:
		return nil
	case p.Daemon.Silent:
		return p.wedged(ctx)
	case !p.Daemon.Absent:
		p.CannotTell("daemon", p.StatusErr)
		return nil
	case p.flannelServes():
		return nil
	}
	f := broken("daemon-stopped", "no muslin daemon runs on this node: nothing is carried", p.StatusErr.Error(),
		"systemctl start muslin # or muslin run with the flags that it had; why it ended: journalctl -u muslin -n 50")
	if since, ok := p.rescued(); ok {
		f.Summary = "no muslin daemon runs on this node, which it took over from flannel: nothing is carried"
		f.Evidence += fmt.Sprintf("; a rescue is under way since %s", stamp(since))
		f.Fix = "muslin rescue --undo # which gives flannel its data path back; to go on in its place: muslin rescue"
	} else if p.Flannel != nil && (p.Flannel.File.Subnet.IsValid() || p.Flannel.File.Subnet6.IsValid()) && !p.muslinHere() {
		f.Summary = "nothing carries this node's packets: it is flannel's, whose vxlan device is not there, and no muslin daemon runs"
		f.Fix = "muslin rescue # which carries them in flannel's place; or restart flanneld, if the kernel's vxlan works"
	}
	f.Explains = stopped
	return []Finding{f}
}

// rescued reports whether a daemon of muslin's is to carry in flannel's place here, and since when ("muslin rescue").
func (p *Patient) rescued() (since time.Time, ok bool) {
	j, err := rescue.Read(p.Options.StateDir)
	if err != nil || j == nil || j.Rebooted() || j.Here() != nil {
		return time.Time{}, false
	}
	return j.Since, true
}

// stopped are what follows from a daemon that does not carry packets.
var stopped = []string{"ip-forward", "forward-drop", "firewalld-reject", "route-missing", "route-wrong", "rp-filter", "lease-*", "udp-*", "public-ip-*", "mtu-*", "peer-*"}

// wedged is about a daemon that has taken a connection and does not answer. One that is merely slow gets more time.
func (p *Patient) wedged(ctx context.Context) []Finding {
	state, name := processState(p.Daemon.PID)
	f := broken("daemon-wedged", "the daemon does not answer", "", fmt.Sprintf("kill -QUIT %d; systemctl restart muslin # the log says then where it hung", p.Daemon.PID))
	f.Confidence, f.Explains = Likely, append([]string{"socket-buffer"}, stopped...)
	began := time.Now()
	frozen, thaw := frozenGroup(p.Daemon.PID)
	if state != "T" && state != "Z" && frozen == "" {
		ctx, cancel := context.WithTimeout(ctx, 2*StatusTime)
		defer cancel()
		if _, err := control.AskNetwork(ctx, p.Options.Control, p.Options.Net); err == nil {
			p.CannotTell("daemon", fmt.Errorf("it takes %v to answer", (StatusTime+time.Since(began)).Round(time.Second)))
			return nil
		}
	}
	waited := (StatusTime + time.Since(began)).Round(time.Second / 10)
	f.Evidence = fmt.Sprintf("%s takes a connection, and nothing comes for %v; process %d (%s) is in state %s", p.Options.Control, waited, p.Daemon.PID, name, state)
	switch {
	case frozen != "":
		f.Summary, f.Confidence = "the daemon's cgroup is frozen, as by docker pause or systemctl freeze: it carries nothing", Certain
		f.Evidence = fmt.Sprintf("%s says that it is frozen; process %d (%s) is in it", frozen, p.Daemon.PID, name)
		f.Fix = thaw + " # or: systemctl thaw muslin, docker unpause"
	case state == "T", state == "t":
		f.Summary, f.Fix, f.Confidence = "the daemon is stopped by a signal or a debugger: it carries nothing", fmt.Sprintf("kill -CONT %d", p.Daemon.PID), Certain
	case state == "D":
		f.Summary, f.Fix = "the daemon hangs in the kernel", fmt.Sprintf("cat /proc/%d/stack; dmesg | tail", p.Daemon.PID)
	case state == "":
		f.Evidence, f.Fix = fmt.Sprintf("%s takes a connection, and nothing comes for %v", p.Options.Control, waited), "systemctl restart muslin"
	}
	return []Finding{f}
}

const cgroupRoot = "/sys/fs/cgroup"

// frozenGroup is the file that says that a process's cgroup is frozen, and the command that thaws it; empty: it is not. Of
// version 2 the processes of such a group sleep, by their state; of version 1 they hang in the kernel (D).
func frozenGroup(pid int) (file, thaw string) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", ""
	}
	says := func(file, word string) bool {
		content, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(content), word)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) < 3 {
			continue
		}
		switch group := fields[2]; fields[1] {
		case "":
			root := cgroupRoot
			if _, err := os.Stat(root + "/unified"); err == nil { // beside those of version 1
				root += "/unified"
			}
			file = filepath.Join(root, group, "cgroup.events")
			for up := group; says(file, "frozen 1") && len(up) > 1; up = filepath.Dir(up) { // that one, or one that it is in
				if switched := filepath.Join(root, up, "cgroup.freeze"); says(switched, "1") {
					return file, "echo 0 > " + switched
				}
			}
		case "freezer":
			file = filepath.Join(cgroupRoot, "freezer", group, "freezer.state")
			for up := group; says(file, "FROZEN") && len(up) > 1; up = filepath.Dir(up) {
				if dir := filepath.Join(cgroupRoot, "freezer", up); says(dir+"/freezer.self_freezing", "1") {
					return file, "echo THAWED > " + dir + "/freezer.state"
				}
			}
		}
	}
	return "", ""
}

// processState is the letter and the name in /proc/PID/stat; empty: there is no such process, or it cannot be seen.
func processState(pid int) (state, name string) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", ""
	}
	_, rest, _ := strings.Cut(string(data), "(")
	at := strings.LastIndex(rest, ") ")
	if at < 0 || len(rest) < at+3 {
		return "", ""
	}
	return rest[at+2 : at+3], rest[:at]
}

// checkVersion is about a binary that was changed, and a daemon that was not started again.
func checkVersion(_ context.Context, p *Patient) []Finding {
	if p.Status.Version == p.Options.Version {
		return nil
	}
	return []Finding{{
		ID: "version-skew", Severity: Warning, Confidence: Certain,
		Summary:  "the daemon is of another version than this command",
		Evidence: fmt.Sprintf("the daemon is %s, this command %s", p.Status.Version, p.Options.Version),
		Fix:      "systemctl restart muslin # or, without a lost packet: muslin run --replace with the daemon's flags",
	}}
}
