package etcd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"muslin/lease"
	"muslin/lease/etcd"
)

// authority signs certificates for 127.0.0.1.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var der []byte
	der, a.key = a.sign(template, template, nil)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, a.file = cert, a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) sign(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return der, key
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// issue makes a certificate for server and client alike.
func (a *authority) issue(name string, ip string) (certFile, keyFile string) {
	a.t.Helper()
	der, key := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(ip)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, a.key)
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(name+".pem", "CERTIFICATE", der), a.write(name+".key", "EC PRIVATE KEY", keyDER)
}

// check wants a kind of error, and words that tell an operator what is wrong and what to do.
func check(t *testing.T, cfg etcd.Config, kind error, words ...string) {
	t.Helper()
	cfg.Timeout = 2 * time.Second
	begun := time.Now()
	err := dial(t, cfg).CheckConnection(t.Context())
	if kind == nil {
		if err != nil {
			t.Errorf("got %v", err)
		}
		return
	}
	if !errors.Is(err, kind) {
		t.Errorf("got %v, want %v", err, kind)
		return
	}
	t.Log(err)
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q lacks %q", err, w)
		}
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestCheckConnectionTLS(t *testing.T) {
	t.Parallel()
	right, wrong := newAuthority(t, "right"), newAuthority(t, "wrong")
	cert, key := right.issue("server", "127.0.0.1")
	server := startReal(t, "https", "--cert-file", cert, "--key-file", key)
	ep := []string{server.url}
	t.Run("right CA alone", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: ep, CAFile: right.file}, nil)
	})
	t.Run("untrusted CA", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: ep, CAFile: wrong.file}, etcd.ErrTLS, "authority that is not trusted", "--etcd-cafile")
	})
	t.Run("no CA", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: ep}, etcd.ErrTLS, "authority that is not trusted", "--etcd-cafile")
	})
	t.Run("http to a TLS server", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: []string{strings.Replace(server.url, "https", "http", 1)}}, etcd.ErrTLS, "write https://")
	})
	otherCert, otherKey := right.issue("elsewhere", "192.0.2.1")
	elsewhere := startReal(t, "https", "--cert-file", otherCert, "--key-file", otherKey)
	t.Run("certificate of another host", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: []string{elsewhere.url}, CAFile: right.file}, etcd.ErrTLS, "192.0.2.1", "use a name")
	})
	mutual := startReal(t, "https", "--cert-file", cert, "--key-file", key, "--client-cert-auth", "--trusted-ca-file", right.file)
	clientCert, clientKey := right.issue("client", "127.0.0.1")
	badCert, badKey := wrong.issue("client", "127.0.0.1")
	closed := []string{mutual.url}
	t.Run("client certificate", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: closed, CAFile: right.file, CertFile: clientCert, KeyFile: clientKey}, nil)
	})
	t.Run("client certificate missing", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: closed, CAFile: right.file}, etcd.ErrTLS, "--etcd-certfile")
	})
	t.Run("client certificate of another CA", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: closed, CAFile: right.file, CertFile: badCert, KeyFile: badKey}, etcd.ErrTLS, "--etcd-certfile")
	})
	plain := startReal(t, "http")
	t.Run("https to a plain server", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: []string{strings.Replace(plain.url, "http", "https", 1)}, CAFile: right.file}, etcd.ErrTLS, "does not speak TLS")
	})
	t.Run("nobody there", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: []string{"http://" + freePort(t)}}, lease.ErrUnavailable, "connection refused", "is etcd running")
	})
	t.Run("one of two", func(t *testing.T) {
		t.Parallel()
		check(t, etcd.Config{Endpoints: []string{"http://" + freePort(t), plain.url}}, nil)
	})
}

// A plain server's hanging up on a handshake arrives as a reset where it has not read all of it.
func TestCheckConnectionReset(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			first := make([]byte, 1024)
			if _, err := c.Read(first); err == nil && first[0] == 'G' {
				_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
			} else {
				_ = c.(*net.TCPConn).SetLinger(0)
			}
			c.Close()
		}
	}()
	check(t, etcd.Config{Endpoints: []string{"https://" + l.Addr().String()}}, etcd.ErrTLS, "does not speak TLS")
}

func TestCheckConnectionPassword(t *testing.T) {
	server := startReal(t, "http")
	raw := rawClient(t, server.url)
	ctx := t.Context()
	for _, step := range []func() error{
		func() error { _, err := raw.UserAdd(ctx, "root", "secret"); return err },
		func() error { _, err := raw.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := raw.UserAdd(ctx, "stranger", "strange"); return err },
		func() error { _, err := raw.RoleAdd(ctx, "muslin"); return err },
		func() error {
			_, err := raw.RoleGrantPermission(ctx, "muslin", etcd.DefaultPrefix+"/", clientv3.GetPrefixRangeEnd(etcd.DefaultPrefix+"/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := raw.UserAdd(ctx, "muslin", "cloth"); return err },
		func() error { _, err := raw.UserGrantRole(ctx, "muslin", "muslin"); return err },
		func() error { _, err := raw.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	ep := []string{server.url}
	t.Run("right", func(t *testing.T) {
		check(t, etcd.Config{Endpoints: ep, Username: "muslin", Password: "cloth"}, nil)
		s := dial(t, etcd.Config{Endpoints: ep, Username: "muslin", Password: "cloth"})
		value := []byte(`{"PublicIP":"192.0.2.1","PublicIPv6":null}`)
		if _, err := s.PutLease(t.Context(), "10.244.1.0-24", value, lease.TTL, lease.Absent); err != nil {
			t.Error(err)
		}
	})
	t.Run("wrong password", func(t *testing.T) {
		check(t, etcd.Config{Endpoints: ep, Username: "muslin", Password: "silk"}, lease.ErrDenied, "wrong user name or password", "--etcd-password")
	})
	t.Run("none", func(t *testing.T) {
		check(t, etcd.Config{Endpoints: ep}, lease.ErrDenied, "--etcd-username")
	})
	t.Run("without permission", func(t *testing.T) {
		check(t, etcd.Config{Endpoints: ep, Username: "stranger", Password: "strange"}, lease.ErrDenied, `user "stranger" may not`)
	})
	t.Run("password, and the server is down", func(t *testing.T) {
		down := dial(t, etcd.Config{Endpoints: []string{"http://" + freePort(t)}, Username: "muslin", Password: "cloth", Timeout: time.Second})
		if err := down.CheckConnection(t.Context()); !errors.Is(err, lease.ErrUnavailable) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("got %v", err)
		}
	})
}

func TestDialRefuses(t *testing.T) {
	ca := newAuthority(t, "ca")
	cert, key := ca.issue("a", "127.0.0.1")
	_, otherKey := ca.issue("b", "127.0.0.1")
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	ep := []string{"https://127.0.0.1:2379"}
	for _, test := range []struct {
		name string
		cfg  etcd.Config
		want string
	}{
		{"missing CA", etcd.Config{Endpoints: ep, CAFile: garbage + "x"}, "--etcd-cafile"},
		{"bad CA", etcd.Config{Endpoints: ep, CAFile: garbage}, "no PEM certificate"},
		{"certificate without key", etcd.Config{Endpoints: ep, CertFile: cert}, "belong together"},
		{"key without certificate", etcd.Config{Endpoints: ep, KeyFile: key}, "belong together"},
		{"another key", etcd.Config{Endpoints: ep, CertFile: cert, KeyFile: otherKey}, "does not match"},
		{"bad key", etcd.Config{Endpoints: ep, CertFile: cert, KeyFile: garbage}, "matching PEM files"},
		{"user without password", etcd.Config{Username: "a"}, "belong together"},
		{"files, but http", etcd.Config{CAFile: ca.file}, "plain http"},
		{"http and https", etcd.Config{Endpoints: []string{"http://a:1", "https://b:1"}}, "use one for all"},
		{"another scheme", etcd.Config{Endpoints: []string{"ftp://a:1"}}, "want http or https"},
		{"not a URL", etcd.Config{Endpoints: []string{"http://"}}, "want http://HOST:PORT"},
		{"a path", etcd.Config{Endpoints: []string{"http://a:1/v2"}}, "want http://HOST:PORT"},
		{"empty prefix", etcd.Config{Prefix: "/"}, "--etcd-prefix"},
	} {
		if _, err := etcd.Dial(test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
	for _, endpoint := range []string{
		"http://user:pa55@a:1", "user:pa55@a", "http://pa55@a:1", "https://user:pa55/word@a:1", "http://user:p@pa55@a:1", "ftp://user:pa55@", "http://user:pa55%@a:1",
	} {
		_, err := etcd.Dial(etcd.Config{Endpoints: []string{"http://b:1", endpoint}})
		if err == nil || !strings.Contains(err.Error(), "--etcd-username") || strings.Contains(err.Error(), "pa55") || strings.Contains(err.Error(), "user:") {
			t.Errorf("%s: got %v", endpoint, err)
		}
	}
	s, err := etcd.Dial(etcd.Config{Endpoints: []string{"10.0.0.1", "h:99"}})
	if err != nil || strings.Join(s.Endpoints(), " ") != "http://10.0.0.1:2379 http://h:99" {
		t.Errorf("bare hosts: %v, %v", s, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Config(context.Background()); !errors.Is(err, lease.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
}
