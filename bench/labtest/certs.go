//go:build linux

package labtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority is a CA that nobody knows.
type Authority struct {
	File string // its certificate, PEM

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Pair is a certificate and its key, PEM files.
type Pair struct{ Cert, Key string }

// NewAuthority makes a CA, with its certificate in DIR/NAME.pem.
func NewAuthority(t *testing.T, dir, name string) *Authority {
	t.Helper()
	a := &Authority{key: Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := Must(x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key))(t)
	a.cert = Must(x509.ParseCertificate(der))(t)
	a.File = writePEM(t, dir, name+".pem", "CERTIFICATE", der)
	return a
}

// Issue signs a certificate with the common name, for servers at loopback and the addresses, and for clients.
// It writes DIR/NAME.pem and DIR/NAME-key.pem, each replaced as a whole.
func (a *Authority) Issue(t *testing.T, dir, name string, addrs ...netip.Addr) Pair {
	t.Helper()
	return a.IssueFor(t, dir, name, a.cert.NotBefore, a.cert.NotAfter, addrs...)
}

// IssueFor is Issue for a certificate that is good from one time to another.
func (a *Authority) IssueFor(t *testing.T, dir, name string, from, to time.Time, addrs ...netip.Addr) Pair {
	t.Helper()
	key := Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: Must(rand.Int(rand.Reader, big.NewInt(1<<62)))(t), Subject: pkix.Name{CommonName: name},
		NotBefore: from, NotAfter: to,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		// etcd's own gateway connects to it as a client.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, addr := range addrs {
		template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
	}
	der := Must(x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key))(t)
	keyDER := Must(x509.MarshalECPrivateKey(key))(t)
	return Pair{Cert: writePEM(t, dir, name+".pem", "CERTIFICATE", der), Key: writePEM(t, dir, name+"-key.pem", "EC PRIVATE KEY", keyDER)}
}

// writePEM replaces a file, so that whoever reads it sees the old content or the new.
func writePEM(t *testing.T, dir, name, kind string, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}
