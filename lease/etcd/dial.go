package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

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

// reconnect is how a lost server is tried again: often enough that it is noticed within seconds however long
// it was away. gRPC's own back-off grows to two minutes, and it waits 20 seconds for one that does not answer.
var reconnect = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 500 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
	MinConnectTimeout: 5 * time.Second,
}

// DefaultEndpoints is flannel's.
func DefaultEndpoints() []string { return []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"} }

// ErrTLS says that a server is there, but TLS with it does not work as configured.
var ErrTLS = errors.New("TLS failed")

// ErrFull says that a server's database has reached its quota: it can be read, and not written.
var ErrFull = errors.New("its database has reached its quota")

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
	tls       *tlsFiles // nil: plain
	log       *slog.Logger

	mu     sync.Mutex
	client *clientv3.Client // nil until the first request that got through to a server
	closed bool
	grants map[string][]clientv3.LeaseID // by key: what this Store granted for it and has not revoked

	watches atomic.Uint64 // begun so far
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
		s.tls = &tlsFiles{ca: cfg.CAFile, cert: cfg.CertFile, key: cfg.KeyFile}
		if _, err := s.tls.config(); err != nil {
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
	cfg := s.clientConfig()
	cfg.Username, cfg.Password = s.cfg.Username, s.cfg.Password
	cfg.DialOptions = append(cfg.DialOptions, grpc.WithChainUnaryInterceptor(s.logInApart))
	c, err := clientv3.New(cfg)
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	s.client = c
	return c, nil
}

// clientConfig is that of a client without a user.
func (s *Store) clientConfig() clientv3.Config {
	options := []grpc.DialOption{grpc.WithConnectParams(reconnect)}
	if s.tls != nil {
		options = append(options, grpc.WithTransportCredentials(s.tls))
	}
	return clientv3.Config{
		Endpoints:            s.cfg.Endpoints,
		DialOptions:          options,
		DialTimeout:          s.cfg.Timeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		PermitWithoutStream:  true,
		Logger:               clientLog(s.log),
	}
}

// logInApart makes logins over a connection of their own. The client sends its token along with every request,
// and etcd before 3.5 refuses a login that comes with a token which it has forgotten: after five minutes
// without a request, or when it was started again, such a client would never get in any more.
func (s *Store) logInApart(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	login, ok := req.(*pb.AuthenticateRequest)
	if !ok {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	c, err := clientv3.New(s.clientConfig())
	if err != nil {
		return err
	}
	defer c.Close()
	answer, err := c.Authenticate(ctx, login.Name, login.Password)
	if err != nil {
		return err
	}
	reply.(*pb.AuthenticateResponse).Token = answer.Token
	return nil
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
