//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muslin/bench/labtest"
)

// etcdPassword is like nothing that the daemon says by itself.
const etcdPassword = "xq7-Vogelbeere"

// However the daemon gets etcd's password, nobody else finds it: not in the process list, the log at its most
// talkative, the status, the control socket, or a file of the daemon's; also when etcd goes away and when it
// refuses the password.
//
//	h1 (etcd with users, muslin at debug level) ── br0
func TestSecretsStayHidden(t *testing.T) {
	t.Parallel()
	for name, way := range map[string]struct{ wrap, flags []string }{
		"flag":               {flags: []string{"--etcd-password", etcdPassword}},
		"flag with a sign":   {flags: []string{"--etcd-password=" + etcdPassword}},
		"variable":           {wrap: []string{"env", "MUSLIN_ETCD_PASSWORD=" + etcdPassword}},
		"flannel's variable": {wrap: []string{"env", "FLANNELD_ETCD_PASSWORD=" + etcdPassword}},
		"file":               {flags: []string{"--etcd-password-file", "PASSWORD"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 1)
			h := l.Host(1)
			store := startEtcd(t, h)
			store.Config(t, vxlanConfig)
			store.Do(t, "user", "add", "root:"+etcdPassword)
			store.Do(t, "user", "grant-role", "root", "root")
			store.Do(t, "auth", "enable")
			store.Ctl = append(store.Ctl, "--user", "root:"+etcdPassword)
			file := filepath.Join(l.Dir(), "password")
			if err := os.WriteFile(file, []byte(etcdPassword+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range way.flags {
				way.flags[i] = strings.Replace(way.flags[i], "PASSWORD", file, 1)
			}
			m := must(h.LaunchMuslinUnder(way.wrap, labtest.Bin, append(way.flags, "--etcd-username", "root", "--log-level", "debug", "--log-format", "json", "--metrics", "9469", "--pprof")...))(t)
			if err := m.WaitReady(t.Context()); err != nil {
				t.Fatal(err)
			}
			waitHealthy(t, m, true)

			for _, name := range []string{"cmdline", "environ"} {
				path := fmt.Sprintf("/proc/%d/%s", m.PID(), name)
				expectHidden(t, path, string(must(os.ReadFile(path))(t)))
			}
			for _, ask := range [][]string{{"status"}, {"status", "--output", "json"}} {
				expectHidden(t, strings.Join(ask, " "), must(m.Command(t.Context(), ask...))(t))
			}
			for _, at := range []string{"8081/readyz?verbose", "9469/metrics", "9469/debug/pprof/", "9469/debug/pprof/cmdline", "9469/debug/pprof/goroutine?debug=2"} {
				port, path, _ := strings.Cut(at, "/")
				_, text := ask(t, h.Node, netip.MustParseAddrPort("127.0.0.1:"+port), "/"+path, "")
				expectHidden(t, at, text)
			}
			expectHidden(t, "control socket", must(askControl(m.Control, "/v1/status"))(t))

			// Trouble makes talkative.
			if err := store.Proc.Stop(); err != nil {
				t.Fatal(err)
			}
			waitHealthy(t, m, false)
			expectHidden(t, "status without etcd", must(m.Command(t.Context(), "status"))(t))
			store.Start(t)
			waitHealthy(t, m, true)
			refused, err := h.Run(t.Context(), labtest.Bin, "leases", "list", "--etcd-username", "root", "--etcd-password", etcdPassword+"!")
			if err == nil {
				t.Error("a wrong password is taken")
			}
			expectHidden(t, "a refusal", refused)
			if err := m.Stop(); err != nil {
				t.Error(err)
			}
			expectHidden(t, "log", m.Output())
			err = filepath.WalkDir(h.Dir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() || strings.HasPrefix(path, filepath.Join(h.Dir, "etcd")) {
					return err
				}
				content, err := os.ReadFile(path)
				expectHidden(t, path, string(content))
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// askControl gets a path from a control socket as any program can.
func askControl(socket, path string) (string, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	response, err := client.Get("http://muslin" + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return string(content), err
}

func expectHidden(t *testing.T, where, text string) {
	t.Helper()
	if text == "" {
		t.Errorf("%s is empty", where)
	}
	if i := strings.Index(text, etcdPassword); i >= 0 {
		t.Errorf("the password is in %s: %q", where, text[max(0, i-40):i+len(etcdPassword)])
	}
}
