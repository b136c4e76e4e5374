//go:build linux

package doctor

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// etcd reads its certificate for each connection, so that it can be given a wrong one while it runs; and so does the doctor,
// who has etcd's place and the CA from the daemon's command line.
//
//	h1 (etcd with TLS) ── br0 ── h2 (muslin) ── p2a
func TestStoreTLS(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "iptables")
	l := labtest.NewLab(t, 2)
	h1, h2 := l.Host(1), l.Host(2)
	store, caFile := startTLSEtcd(t, h1)
	ca := store.ca
	store.Config(t, labtest.VXLANConfig)
	m := labtest.StartMuslin(t, h2, "--etcd-endpoints", store.url, "--etcd-cafile", caFile)
	labtest.AddPod(t, m, "a")
	examine(t, m).well(t)

	now := time.Now()
	replace := func(by *labtest.Authority, from, to time.Time, addr netip.Addr) {
		by.IssueFor(t, h1.Dir, "etcd", from, to, addr)
	}
	good := func() { replace(ca, now.Add(-time.Hour), now.Add(time.Hour), h1.Addr) }

	replace(ca, now.Add(-2*time.Hour), now.Add(-time.Hour), h1.Addr)
	examine(t, m).first(t, "etcd-certificate", h2.Addr.String(), "expired", "renew the certificate of etcd")
	replace(ca, now.Add(24*time.Hour), now.Add(48*time.Hour), h1.Addr)
	examine(t, m).first(t, "clock-skew", h2.Addr.String(), "not good yet", "chronyc")
	replace(ca, now.Add(-time.Hour), now.Add(time.Hour), h2.Addr)
	examine(t, m).first(t, "etcd-certificate", h2.Addr.String(), h1.Addr.String(), "name")
	good()
	examine(t, m, "--etcd-cafile", labtest.NewAuthority(t, h1.Dir, "stranger").File).first(t, "etcd-certificate", h2.Addr.String(), "authority", "--etcd-cafile")
	examine(t, m, "--etcd-cafile", "", "--etcd-endpoints", "http://"+h1.Addr.String()+":2379").first(t, "etcd-certificate", h2.Addr.String(), "speaks TLS", "--etcd-endpoints")
	examine(t, m, "--etcd-cafile", "/nowhere/ca.pem").first(t, "etcd-certificate", h2.Addr.String(), "/nowhere/ca.pem")

	// Its clock is 36 hours ahead of ours, and its certificate from tomorrow.
	pair := ca.IssueFor(t, h1.Dir, "ahead", now.Add(24*time.Hour), now.Add(48*time.Hour), h1.Addr)
	ahead := serveAhead(t, h1, pair, 36*time.Hour)
	examine(t, m, "--etcd-endpoints", ahead).first(t, "clock-skew", h2.Addr.String(), "this host's clock is wrong", "etcd's says")

	run(t, h2.Node, "iptables", "-A", "OUTPUT", "-p", "tcp", "--dport", "2379", "-j", "DROP")
	examine(t, m).first(t, "etcd-unreachable", h2.Addr.String(), store.url, "no answer")
	run(t, h2.Node, "iptables", "-D", "OUTPUT", "-p", "tcp", "--dport", "2379", "-j", "DROP")
	if err := store.Proc.Stop(); err != nil {
		t.Fatal(err)
	}
	examine(t, m).first(t, "etcd-unreachable", h2.Addr.String(), "refused", "start etcd on "+h1.Addr.String())
}

// tlsEtcd is an etcd whose certificate lies in its host's directory.
type tlsEtcd struct {
	*labtest.Etcd
	ca  *labtest.Authority
	url string
}

func startTLSEtcd(t *testing.T, h *lab.Host) (*tlsEtcd, string) {
	t.Helper()
	lab.RequireTool(t, "etcd", "etcdctl")
	ca := labtest.NewAuthority(t, h.Dir, "ca")
	pair := ca.Issue(t, h.Dir, "etcd", h.Addr)
	url := "https://" + h.Addr.String() + ":2379"
	e := &labtest.Etcd{Host: h, Ctl: []string{"--endpoints", url, "--insecure-skip-tls-verify", "--insecure-transport=false"}, Args: []string{
		"etcd", "--data-dir", h.Dir + "/data",
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--cert-file", pair.Cert, "--key-file", pair.Key,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--initial-cluster", "default=http://127.0.0.1:2380",
		"--logger", "zap", "--log-outputs", "stderr",
	}}
	e.Start(t)
	return &tlsEtcd{e, ca, url}, ca.File
}

// serveAhead is a server with TLS whose clock is so far ahead, as far as it is to be seen from outside.
func serveAhead(t *testing.T, h *lab.Host, pair labtest.Pair, ahead time.Duration) (url string) {
	t.Helper()
	var l net.Listener
	if err := h.Do(func() (err error) {
		l, err = net.Listen("tcp", h.Addr.String()+":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	cert := labtest.Must(tls.LoadX509KeyPair(pair.Cert, pair.Key))(t)
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
	})}
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})) }()
	return "https://" + l.Addr().String()
}

// Users without the rights, and a network without a config:
//
//	h1 (etcd, muslin at times) ── br0
func TestStoreRights(t *testing.T) {
	t.Parallel()
	l := labtest.NewLab(t, 1)
	h := l.Host(1)
	e := labtest.StartEtcd(t, h)
	m := h.Muslin(labtest.Bin)
	flags := here(m, e)
	node := h.Addr.String()

	waiting := labtest.LaunchMuslin(t, h, "--etcd-endpoints", labtest.Endpoint(h))
	if err := waiting.WaitOutput(t.Context(), "config"); err != nil {
		t.Fatal(err)
	}
	examine(t, waiting).first(t, "network-config", node, "muslin config set", labtest.Prefix)
	e.Config(t, "hello")
	examine(t, waiting).first(t, "network-config", node, labtest.Prefix+"/config", "JSON")
	e.Config(t, labtest.VXLANConfig)
	if err := waiting.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	examine(t, waiting).well(t)
	if err := waiting.Stop(); err != nil {
		t.Fatal(err)
	}

	for _, command := range [][]string{
		{"user", "add", "root:secret"}, {"user", "grant-role", "root", "root"},
		{"user", "add", "nobody:secret"}, {"user", "add", "reader:secret"}, {"role", "add", "reading"},
		{"role", "grant-permission", "reading", "--prefix=true", "read", labtest.Prefix}, {"user", "grant-role", "reader", "reading"},
		{"auth", "enable"},
	} {
		e.Do(t, command...)
	}
	as := func(user, password string) []string {
		return append([]string{"--etcd-username", user, "--etcd-password", password}, flags...)
	}
	examine(t, m, flags...).first(t, "etcd-permission", node, "--etcd-username")
	examine(t, m, as("reader", "wrong")...).first(t, "etcd-permission", node, "password", "reader")
	examine(t, m, as("nobody", "secret")...).first(t, "etcd-permission", node, "nobody", "role grant-permission", labtest.Prefix)
	examine(t, m, as("reader", "secret")...).first(t, "etcd-permission", node, "read, but not write", "readwrite", "reader")
	examine(t, m, as("root", "secret")...).first(t, "daemon-stopped", node)
}
