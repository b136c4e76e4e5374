package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc/credentials"
)

// tlsFiles are PEM files, each empty if not given. They are read for every new connection, so that renewed
// certificates, a new CA among them, count without a restart.
type tlsFiles struct{ ca, cert, key string }

var _ credentials.TransportCredentials = (*tlsFiles)(nil)

// config is what the files say now.
func (f *tlsFiles) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("etcd: read CA: %w: name the right file with --etcd-cafile", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd: CA file %s holds no PEM certificate: name the right file with --etcd-cafile", f.ca)
		}
	}
	switch {
	case (f.cert == "") != (f.key == ""):
		return nil, errors.New("etcd: a certificate and its key belong together: give both --etcd-certfile and --etcd-keyfile")
	case f.cert != "":
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, fmt.Errorf("etcd: load certificate %s and key %s: %w: name matching PEM files with --etcd-certfile and --etcd-keyfile", f.cert, f.key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (f *tlsFiles) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := f.config()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(c).ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements credentials.TransportCredentials. Nobody connects to a client.
func (f *tlsFiles) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("etcd: not a server")
}

// Info implements credentials.TransportCredentials.
func (f *tlsFiles) Info() credentials.ProtocolInfo { return credentials.NewTLS(nil).Info() }

// Clone implements credentials.TransportCredentials.
func (f *tlsFiles) Clone() credentials.TransportCredentials { c := *f; return &c }

// OverrideServerName implements credentials.TransportCredentials. A server is checked by the name that it is
// dialled under.
func (f *tlsFiles) OverrideServerName(string) error {
	return errors.New("etcd: a server is known by the name of its endpoint")
}
