//go:build linux

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"iter"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
)

// startTLSEtcd starts an etcd whose certificate is signed by a CA of its own, and returns the CA's file.
func startTLSEtcd(t *testing.T, h *lab.Host) (*etcdServer, string) {
	t.Helper()
	lab.RequireTool(t, "etcd", "etcdctl")
	ca, cert, key := certificates(t, h)
	e := &etcdServer{host: h, ctl: []string{"--endpoints", "https://127.0.0.1:2379", "--cacert", ca}, args: []string{
		"etcd", "--data-dir", filepath.Join(h.Dir, "etcd"),
		"--listen-client-urls", "https://127.0.0.1:2379",
		"--advertise-client-urls", "https://127.0.0.1:2379",
		"--cert-file", cert, "--key-file", key,
		"--listen-peer-urls", "http://127.0.0.1:2380",
		"--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "default=http://127.0.0.1:2380",
		"--logger", "zap", "--log-outputs", "stderr",
	}}
	e.start(t)
	return e, ca
}

// certificates makes a CA and a server certificate for the host, and returns their PEM files.
func certificates(t *testing.T, h *lab.Host) (caFile, certFile, keyFile string) {
	t.Helper()
	caKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a CA that nobody knows"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER := must(x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey))(t)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "etcd"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{h.Addr.AsSlice(), net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		// etcd's own gateway connects to it as a client.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der := must(x509.CreateCertificate(rand.Reader, server, ca, &key.PublicKey, caKey))(t)
	keyDER := must(x509.MarshalECPrivateKey(key))(t)
	write := func(name, kind string, content []byte) string {
		path := filepath.Join(h.Dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("ca.pem", "CERTIFICATE", caDER), write("etcd.pem", "CERTIFICATE", der), write("etcd-key.pem", "EC PRIVATE KEY", keyDER)
}

// With the right CA the daemon starts, by a CA file alone:
//
//	h1 (etcd with TLS, muslin) ── br0
func TestEtcdWithTLS(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	store, ca := startTLSEtcd(t, l.Host(1))
	store.config(t, vxlanConfig)
	m := startMuslin(t, l.Host(1), "--etcd-endpoints", "https://127.0.0.1:2379", "--etcd-cafile", ca)
	waitHealthy(t, m, true)
	if s := status(t, m).Store; len(s.Endpoints) != 1 {
		t.Errorf("store %+v, want one endpoint", s)
	}
}

// lines are the lines of s that are not empty.
func lines(s string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range strings.Lines(s) {
			if line = strings.TrimSpace(line); line != "" && !yield(line) {
				return
			}
		}
	}
}
