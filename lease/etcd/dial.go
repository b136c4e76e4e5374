package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"muslin/lease"
)

const (
	// DefaultPrefix is flannel's.
	DefaultPrefix = "/coreos.com/network"

	defaultTimeout = 5 * time.Second

	// A dead connection is noticed after the sum of these two. The server refuses pings more often
	// than every 5 s.
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 5 * time.Second
)

// DefaultEndpoints is flannel's.
func DefaultEndpoints() []string { return []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"} }

// ErrTLS says that a server is there, but TLS with it does not work as configured.
var ErrTLS = errors.New("TLS failed")

// Config says which etcd, and as whom.
type Config struct {
	Endpoints []string // URLs, or host:port; none means DefaultEndpoints
	Prefix    string   // "" means DefaultPrefix

	CAFile, CertFile, KeyFile string // PEM; a CA alone is enough, a certificate needs its key
	Username, Password        string

	Timeout time.Duration // of one request; 0 means 5 seconds
	Logger  *slog.Logger  // nil means slog.Default
}

// Store is a lease.Store in etcd.
type Store struct {
	cfg       Config
	endpoints []endpoint
	tls       *tls.Config // nil: plain
	log       *slog.Logger

	mu     sync.Mutex
	client *clientv3.Client // nil until the first request that got through to a server
	closed bool
	grants map[string][]clientv3.LeaseID // by key: what this Store granted for it and has not revoked
}

type endpoint struct {
	url  string
	host string // with port
	tls  bool
}

// Dial checks the configuration and reads the files it names, but does not wait for a server: see
// CheckConnection.
func Dial(cfg Config) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		cfg.Endpoints = DefaultEndpoints()
	}
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	cfg.Prefix = path.Clean(cfg.Prefix)
	if cfg.Prefix == "/" || cfg.Prefix == "." {
		return nil, errors.New("etcd: the prefix is empty: give one with --etcd-prefix, such as " + DefaultPrefix)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if (cfg.Username == "") != (cfg.Password == "") {
		return nil, errors.New("etcd: a user name and a password belong together: give --etcd-username and --etcd-password-file (or --etcd-password), or none of them")
	}
	s := &Store{cfg: cfg, log: cfg.Logger, grants: make(map[string][]clientv3.LeaseID)}
	files := cfg.CAFile != "" || cfg.CertFile != "" || cfg.KeyFile != ""
	var err error
	if s.endpoints, err = parseEndpoints(cfg.Endpoints, files); err != nil {
		return nil, err
	}
	s.cfg.Endpoints = nil
	for _, e := range s.endpoints {
		s.cfg.Endpoints = append(s.cfg.Endpoints, e.url)
	}
	if s.endpoints[0].tls {
		if s.tls, err = tlsConfig(cfg.CAFile, cfg.CertFile, cfg.KeyFile); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// parseEndpoints takes URLs of one scheme: the client encrypts for all servers or for none.
func parseEndpoints(texts []string, secure bool) ([]endpoint, error) {
	var out []endpoint
	for _, text := range texts {
		text = strings.TrimSpace(text)
		if at := strings.LastIndexByte(text, '@'); at >= 0 {
			// What stands before it may be a password, and is not for any log.
			return nil, fmt.Errorf("etcd endpoint …@%s: a user name in a URL is not used: give it with --etcd-username, and the password with --etcd-password", text[at+1:])
		}
		if !strings.Contains(text, "://") {
			if secure {
				text = "https://" + text
			} else {
				text = "http://" + text
			}
		}
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" {
			return nil, fmt.Errorf("etcd endpoint %q: want http://HOST:PORT or https://HOST:PORT", text)
		}
		if u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), "2379")
		}
		e := endpoint{host: u.Host, tls: u.Scheme == "https", url: u.Scheme + "://" + u.Host}
		switch {
		case u.Scheme != "http" && u.Scheme != "https":
			return nil, fmt.Errorf("etcd endpoint %q: the scheme is %q: want http or https", text, u.Scheme)
		case secure && !e.tls:
			return nil, fmt.Errorf("etcd endpoint %q is plain http, but files for TLS are given: write https://%s, or leave the files out", text, e.host)
		case len(out) > 0 && out[0].tls != e.tls:
			return nil, fmt.Errorf("etcd endpoints %q and %q: some are http and some https: use one for all", out[0].url, e.url)
		}
		out = append(out, e)
	}
	return out, nil
}

func tlsConfig(caFile, certFile, keyFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: read CA: %w: name the right file with --etcd-cafile", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd: CA file %s holds no PEM certificate: name the right file with --etcd-cafile", caFile)
		}
	}
	switch {
	case (certFile == "") != (keyFile == ""):
		return nil, errors.New("etcd: a certificate and its key belong together: give both --etcd-certfile and --etcd-keyfile")
	case certFile != "":
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: load certificate %s and key %s: %w: name matching PEM files with --etcd-certfile and --etcd-keyfile", certFile, keyFile, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// connect returns the client, made at the first call that reaches a server. Without a user name no
// server is needed to make one; with one, it is logged in.
func (s *Store) connect(ctx context.Context) (*clientv3.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, fmt.Errorf("etcd: the store is closed: %w", lease.ErrUnavailable)
	case s.client != nil:
		return s.client, nil
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            s.cfg.Endpoints,
		TLS:                  s.tls,
		Username:             s.cfg.Username,
		Password:             s.cfg.Password,
		DialTimeout:          s.cfg.Timeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		PermitWithoutStream:  true,
		Logger:               clientLog(s.log),
	})
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	s.client = c
	return c, nil
}

// Close ends every request and watch.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.client == nil {
		return nil
	}
	return s.client.Close()
}

// Endpoints is what the Store talks to, as URLs.
func (s *Store) Endpoints() []string { return s.cfg.Endpoints }

// CheckConnection returns nil if a server answers us, or an error that says why none does: nobody there
// (lease.ErrUnavailable), TLS (ErrTLS), or user and password (lease.ErrDenied).
func (s *Store) CheckConnection(ctx context.Context) error {
	if _, _, err := s.Config(ctx); err != nil && !errors.Is(err, lease.ErrNoConfig) {
		return err
	}
	return nil
}
