//go:build linux

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// T is what the lab needs of a *testing.T. Importing testing would bring it into the daemon's binary.
type T interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// packages names the Debian package of each tool that the lab, the demo and the tests use.
var packages = map[string]string{
	"bridge":           "iproute2",
	"capsh":            "libcap2-bin",
	"dbus-daemon":      "dbus-daemon",
	"etcd":             "etcd-server",
	"etcdctl":          "etcd-client",
	"ethtool":          "ethtool",
	"ip":               "iproute2",
	"iperf3":           "iperf3",
	"iptables":         "iptables",
	"iptables-legacy":  "iptables",
	"make":             "make",
	"nebula":           "nebula",
	"nebula-cert":      "nebula",
	"nft":              "nftables",
	"nsenter":          "util-linux",
	"nstat":            "iproute2",
	"openvpn":          "openvpn",
	"ping":             "iputils-ping",
	"prometheus":       "prometheus",
	"promtool":         "prometheus",
	"setpriv":          "util-linux",
	"sockperf":         "sockperf",
	"systemctl":        "systemd",
	"systemd-analyze":  "systemd",
	"systemd-sysusers": "systemd",
	"tcpdump":          "tcpdump",
	"tincd":            "tinc",
	"tshark":           "tshark",
	"unshare":          "util-linux",
	"wg":               "wireguard-tools",
	"wireguard-go":     "wireguard-go",
}

// MissingTools returns nil if all tools can be found, or an error that says what to install.
func MissingTools(tools ...string) error {
	var missing, install []string
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		missing = append(missing, tool)
		if p, ok := packages[tool]; ok && !slices.Contains(install, p) {
			install = append(install, p)
		}
	}
	if missing == nil {
		return nil
	}
	advice := "put them into the PATH"
	if install != nil {
		advice = "on Debian or Ubuntu run `apt-get install " + strings.Join(install, " ") + "`"
	}
	return fmt.Errorf("not found: %s: %s", strings.Join(missing, ", "), advice)
}

// RequireRoot skips the test without root, and fails it where the environment variable CI says that
// every test must run.
func RequireRoot(t T) {
	t.Helper()
	if os.Geteuid() != 0 {
		unavailable(t, "needs root for network namespaces")
	}
}

// RequireTool skips the test where a tool is missing, and fails it where CI is set.
func RequireTool(t T, tools ...string) {
	t.Helper()
	if err := MissingTools(tools...); err != nil {
		unavailable(t, err.Error())
	}
}

func unavailable(t T, reason string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s (with CI set this is a failure)", reason)
	}
	t.Skipf("%s", reason)
}
