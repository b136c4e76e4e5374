//go:build linux

package compare

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"muslin/bench/lab"
)

// openVPN is OpenVPN between two points, with certificates. It encrypts.
type openVPN struct{ bin string }

func (openVPN) Entry() Entry {
	return Entry{Name: "openvpn", About: "OpenVPN, point to point over UDP; encrypts", Rival: true}
}

// openVPNReady is what the log says once the keys are agreed on.
const openVPNReady = "Initialization Sequence Completed"

func (o openVPN) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	if err := missing(o.bin); err != nil {
		return Joined{}, err
	}
	joined := Joined{
		Version: shortOpenVPN(versionLine(ctx, o.bin, "--version")),
		Notes:   []string{"the device's MTU is 1500, and OpenVPN keeps TCP segments below what fits an outer datagram; larger packets leave in fragments"},
	}
	if err := writeCertificates(l.Dir(), l.Hosts()); err != nil {
		return joined, err
	}
	for _, h := range l.Hosts() {
		daemon, err := h.Start("openvpn", nil, o.command(h, other(l, h), l.Dir())...)
		if err != nil {
			return joined, err
		}
		joined.Daemons = append(joined.Daemons, daemon)
		mtu, err := deviceMTU(ctx, h, "ovpn0", daemon)
		if err != nil {
			return joined, err
		}
		if err := addPod(ctx, h, mtu); err != nil {
			return joined, err
		}
	}
	for _, daemon := range joined.Daemons {
		if err := daemon.WaitOutput(ctx, openVPNReady); err != nil {
			return joined, err
		}
	}
	if kernelSide := openVPNInKernel(joined.Daemons[0].Output()); kernelSide {
		joined.Notes = append(joined.Notes, "packets are carried by the kernel (DCO), not by the daemon")
	}
	return joined, nil
}

func (o openVPN) command(h, far *lab.Host, dir string) []string {
	role := []string{"--tls-server", "--dh", "none"}
	if h.Number == 2 {
		role = []string{"--tls-client"}
	}
	inner := func(h *lab.Host) string { return fmt.Sprintf("10.245.0.%d", h.Number) }
	return append([]string{
		o.bin, "--dev", "ovpn0", "--dev-type", "tun", "--proto", "udp", "--local", h.Addr.String(), "--remote", far.Addr.String(),
		"--port", "1194", "--ifconfig", inner(h), inner(far),
		"--route", subnet(far).Addr().String(), "255.255.255.0",
		"--ca", filepath.Join(dir, "ca.pem"),
		"--cert", filepath.Join(dir, h.Name+".pem"),
		"--key", filepath.Join(dir, h.Name+".key"),
	}, role...)
}

// shortOpenVPN leaves out what the program was built with and for.
func shortOpenVPN(version string) string {
	return strings.Join(strings.Fields(version)[:min(2, len(strings.Fields(version)))], " ")
}

// openVPNInKernel reports whether the log tells of a device of the kernel's module.
func openVPNInKernel(log string) bool {
	return strings.Contains(log, "DCO device") && strings.Contains(log, "opened")
}

// writeCertificates writes ca.pem, and for each host a certificate and key that the CA vouches for.
func writeCertificates(dir string, hosts []*lab.Host) error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.pem": ca.pem}
	for _, h := range hosts {
		cert, key, err := ca.issue(h.Name)
		if err != nil {
			return err
		}
		files[h.Name+".pem"], files[h.Name+".key"] = cert, key
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
