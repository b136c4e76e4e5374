//go:build linux

package compare

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"muslin/bench/lab"
)

// nebula is Slack's overlay. It encrypts.
type nebula struct{ bin string }

func (nebula) Entry() Entry { return Entry{Name: "nebula", About: "nebula; encrypts", Rival: true} }

// nebulaConfig leaves everything at its default but what says who is who. The pods' subnets are "unsafe
// routes": routed through a node to addresses that are not nebula's own. default_local_cidr_any is for
// versions from 1.10 on, whose rules do not cover such subnets otherwise; earlier ones ignore it.
const nebulaConfig = `
pki: {ca: %[1]s/ca.crt, cert: %[1]s/%[2]s.crt, key: %[1]s/%[2]s.key}
static_host_map: {"%[3]s": ["%[4]s:4242"]}
lighthouse: {am_lighthouse: false}
listen: {host: 0.0.0.0, port: 4242}
tun:
  dev: nebula0
  unsafe_routes: [{route: %[5]s, via: %[3]s}]
logging: {level: warning, format: text}
firewall:
  default_local_cidr_any: true
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`

// nebulaAddr is the host's address in nebula's own network.
func nebulaAddr(h *lab.Host) string { return fmt.Sprintf("10.245.0.%d", h.Number) }

func (n nebula) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	cert := n.certTool()
	if err := missing(n.bin, cert); err != nil {
		return Joined{}, err
	}
	joined := Joined{Version: "nebula " + strings.TrimPrefix(versionLine(ctx, n.bin, "-version"), "Version: ")}
	dir := l.Dir()
	if _, err := l.Host(1).Run(ctx, cert, "ca", "-name", "bench", "-out-crt", dir+"/ca.crt", "-out-key", dir+"/ca.key"); err != nil {
		return joined, err
	}
	for _, h := range l.Hosts() {
		far := other(l, h)
		if _, err := h.Run(ctx, cert, "sign", "-ca-crt", dir+"/ca.crt", "-ca-key", dir+"/ca.key", "-name", h.Name,
			"-ip", nebulaAddr(h)+"/24", "-subnets", subnet(h).String(), "-out-crt", dir+"/"+h.Name+".crt", "-out-key", dir+"/"+h.Name+".key"); err != nil {
			return joined, err
		}
		config := filepath.Join(dir, h.Name+".yml")
		content := fmt.Sprintf(nebulaConfig, dir, h.Name, nebulaAddr(far), far.Addr, subnet(far))
		if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
			return joined, err
		}
		daemon, err := h.Start("nebula", nil, n.bin, "-config", config)
		if err != nil {
			return joined, err
		}
		joined.Daemons = append(joined.Daemons, daemon)
		mtu, err := deviceMTU(ctx, h, "nebula0", daemon)
		if err != nil {
			return joined, err
		}
		if err := addPod(ctx, h, mtu); err != nil {
			return joined, err
		}
	}
	return joined, nil
}

// certTool is the nebula-cert beside another nebula than the system's, or the system's.
func (n nebula) certTool() string {
	if path := filepath.Join(filepath.Dir(n.bin), "nebula-cert"); filepath.IsAbs(n.bin) {
		if _, err := exec.LookPath(path); err == nil {
			return path
		}
	}
	return "nebula-cert"
}
