package etcd_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"muslin/lease"
	"muslin/lease/etcd"
)

// copyFile replaces a file's content, as a tool that renews certificates does.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}

// Every certificate is replaced, the CA's too, and the server trusts the new CA alone. The client, which has
// read the old ones, goes on.
func TestRenewedCertificates(t *testing.T) {
	t.Parallel()
	before, after := newAuthority(t, "before"), newAuthority(t, "after")
	cert, key := before.issue("server", "127.0.0.1")
	clientCert, clientKey := before.issue("client", "127.0.0.1")
	server := startReal(t, "https", "--cert-file", cert, "--key-file", key, "--client-cert-auth", "--trusted-ca-file", before.file)
	cfg := etcd.Config{Endpoints: []string{server.url}, CAFile: before.file, CertFile: clientCert, KeyFile: clientKey, Timeout: 2 * time.Second}
	s := dial(t, cfg)
	if err := s.CheckConnection(t.Context()); err != nil {
		t.Fatal(err)
	}
	newCert, newKey := after.issue("server", "127.0.0.1")
	newClientCert, newClientKey := after.issue("client", "127.0.0.1")
	for from, to := range map[string]string{
		after.file: before.file, newCert: cert, newKey: key, newClientCert: clientCert, newClientKey: clientKey,
	} {
		copyFile(t, from, to)
	}
	server.stop()
	server.start()
	eventually(t, "the renewed certificates are used", func() bool { return s.CheckConnection(t.Context()) == nil })

	// Half-written: an error that names the files, until the other half is there.
	copyFile(t, newCert, clientKey)
	server.stop()
	server.start()
	eventually(t, "the error names the file", func() bool {
		err := s.CheckConnection(t.Context())
		return errors.Is(err, etcd.ErrTLS) && strings.Contains(err.Error(), clientKey)
	})
	copyFile(t, newClientKey, clientKey)
	eventually(t, "the mended file is used", func() bool { return s.CheckConnection(t.Context()) == nil })
}

// withUsers makes the user muslin and switches authentication on.
func withUsers(t *testing.T, server *realServer) {
	t.Helper()
	raw, ctx := rawClient(t, server.url), t.Context()
	for _, user := range []string{"root", "muslin"} {
		if _, err := raw.UserAdd(ctx, user, "cloth"); err != nil {
			t.Fatal(err)
		}
		if _, err := raw.UserGrantRole(ctx, user, "root"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := raw.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
}

// A login that the server has forgotten, for its age or because the server is another process, is made again
// within the request that meets it.
func TestForgottenLogin(t *testing.T) {
	t.Parallel()
	const life = time.Second
	server := startReal(t, "http", "--auth-token-ttl", "1")
	withUsers(t, server)
	s := dial(t, etcd.Config{Endpoints: []string{server.url}, Username: "muslin", Password: "cloth"})
	put := func() {
		t.Helper()
		if _, err := s.PutLease(t.Context(), "10.244.1.0-24", []byte(`{"PublicIP":"192.0.2.1","PublicIPv6":null}`), lease.TTL, lease.Any); err != nil {
			t.Error(err)
		}
	}
	stands := func() {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Second, errors.New("the watch does not stand"))
		ended := make(chan error, 1)
		standing := make(chan struct{}, 1)
		t.Cleanup(func() { cancel(); <-ended })
		go func() {
			ended <- s.Watch(ctx, 1, func([]lease.Event, int64) {
				select {
				case standing <- struct{}{}:
				default:
				}
			})
			close(ended)
		}()
		select {
		case <-standing:
		case err := <-ended:
			t.Errorf("watch: %v, %v", err, context.Cause(ctx))
		}
	}
	put()
	stands()
	time.Sleep(3 * life) // etcd looks for old tokens once a second
	stands()             // beside the other, which was begun with the old login
	put()
	server.stop()
	server.start()
	eventually(t, "the server answers again", func() bool { return s.CheckConnection(t.Context()) == nil })
	put()
}
