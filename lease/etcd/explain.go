package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"muslin/lease"
)

// probeTimeout bounds the search for the reason of a failure, per endpoint.
const probeTimeout = time.Second

// explain turns an error of the etcd client into one of lease's, with the reason in words. The client
// tells no more than "context deadline exceeded" of most connection troubles; so it goes and looks.
func (s *Store) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch rpctypes.Error(unwrapped(err)) {
	case rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision:
		// Of a server that was started again, or whose users were changed a moment ago. The client logs in anew.
		return fmt.Errorf("etcd: the server has forgotten our login: %w: %w", lease.ErrUnavailable, err)
	}
	if code := status.Code(unwrapped(err)); code == codes.PermissionDenied || code == codes.Unauthenticated {
		return fmt.Errorf("etcd: user %q may not: %w: %w: grant it the prefix %s", s.cfg.Username, err, lease.ErrDenied, s.cfg.Prefix)
	}
	switch rpctypes.Error(unwrapped(err)) {
	case rpctypes.ErrAuthFailed:
		return fmt.Errorf("etcd: wrong user name or password for user %q: %w: check --etcd-username and --etcd-password", s.cfg.Username, lease.ErrDenied)
	case rpctypes.ErrUserEmpty:
		return fmt.Errorf("etcd: the server wants a user name and password: %w: give --etcd-username and --etcd-password", lease.ErrDenied)
	case rpctypes.ErrPermissionDenied:
		return fmt.Errorf("etcd: user %q may not: %w: grant it the prefix %s", s.cfg.Username, lease.ErrDenied, s.cfg.Prefix)
	case rpctypes.ErrCompacted:
		return fmt.Errorf("etcd: %w", lease.ErrCompacted)
	case rpctypes.ErrNoSpace:
		return fmt.Errorf("etcd: %w: %w: compact and defragment it, then disarm the alarm (etcdctl compact, defrag, alarm disarm)", ErrFull, lease.ErrUnavailable)
	case rpctypes.ErrNoLeader:
		return fmt.Errorf("etcd: the cluster has no leader: %w", lease.ErrUnavailable)
	}
	if why := s.probe(ctx); why != nil {
		return why
	}
	return fmt.Errorf("etcd %s: %w: %w", strings.Join(s.cfg.Endpoints, ","), lease.ErrUnavailable, err)
}

// unwrapped finds the client's own error below contexts added on the way.
func unwrapped(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// probe returns nil if some endpoint can be connected to, or else why each cannot.
func (s *Store) probe(ctx context.Context) error {
	var whys []error
	for _, e := range s.endpoints {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		err := s.probeOne(ctx, e)
		cancel()
		if err == nil {
			return nil
		}
		whys = append(whys, err)
	}
	var text []string
	kind := lease.ErrUnavailable
	for _, why := range whys {
		text = append(text, why.Error())
		if errors.Is(why, ErrTLS) {
			kind = ErrTLS
		}
	}
	return &connectError{strings.Join(text, "; "), kind}
}

// connectError is several endpoints' troubles, of one kind.
type connectError struct {
	text string
	kind error
}

func (e *connectError) Error() string { return e.text }

// Unwrap gives the kind; with TLS trouble lease.ErrUnavailable as well, for those who only ask whether
// to try again: certificates get renewed.
func (e *connectError) Unwrap() []error {
	if e.kind == ErrTLS {
		return []error{ErrTLS, lease.ErrUnavailable}
	}
	return []error{e.kind}
}

func (s *Store) probeOne(ctx context.Context, e endpoint) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", e.host)
	if err != nil {
		reason := err.Error()
		var timeout net.Error // of the context, or of the dialler, which has the same deadline
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			reason = "connection refused: is etcd running there?"
		case errors.As(err, &timeout) && timeout.Timeout():
			reason = "no answer: is the address right, and the way open?"
		}
		return fmt.Errorf("etcd %s: %s", e.url, reason)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if !e.tls {
		if tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) == nil {
			return fmt.Errorf("etcd %s: %w: the server speaks TLS: write https://%s, and give its CA with --etcd-cafile", e.url, ErrTLS, e.host)
		}
		return nil
	}
	c, err := s.tls.config()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTLS, err)
	}
	c.ServerName, _, _ = net.SplitHostPort(e.host)
	c.NextProtos = []string{"h2"}
	secure := tls.Client(conn, c)
	if err := secure.HandshakeContext(ctx); err != nil {
		// Where it has not read all of the handshake, the kernel makes a reset of its hanging up.
		hungUp := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
		if hungUp && speaksPlain(ctx, e.host) {
			err = tls.RecordHeaderError{Msg: "plain HTTP"}
		}
		return explainTLS(e, err)
	}
	// With TLS 1.3 a server refuses our certificate only after the handshake. A content one answers
	// HTTP/2's preface and empty settings (RFC 9113, section 3.4).
	_, err = secure.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	if err == nil {
		_, err = secure.Read(make([]byte, 1))
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil // TLS works; the server is slow
	}
	return explainTLS(e, err)
}

// speaksPlain reports whether a server answers HTTP without TLS: etcd then just hangs up on a handshake.
func speaksPlain(ctx context.Context, host string) bool {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return false
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	answer := make([]byte, len("HTTP/"))
	if _, err := fmt.Fprintf(conn, "GET /version HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		return false
	}
	_, err = io.ReadFull(conn, answer)
	return err == nil && string(answer) == "HTTP/"
}

func explainTLS(e endpoint, err error) error {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		alert     tls.AlertError
	)
	reason := ""
	switch {
	case err == nil:
		return nil
	case errors.As(err, &authority):
		reason = "its certificate is signed by an authority that is not trusted: give the right CA with --etcd-cafile"
	case errors.As(err, &host):
		reason = err.Error() + ": use a name that its certificate has"
	case errors.As(err, &invalid):
		reason = err.Error()
	case errors.As(err, &record):
		reason = "the server does not speak TLS: write http://" + e.host
	case errors.As(err, &alert), strings.Contains(err.Error(), "remote error: tls"):
		reason = err.Error() + ": the server refuses our certificate: check --etcd-certfile and --etcd-keyfile"
	default:
		// A timeout or a reset: no verdict on TLS.
		return fmt.Errorf("etcd %s: %w", e.url, err)
	}
	return fmt.Errorf("etcd %s: %w: %s", e.url, ErrTLS, reason)
}
