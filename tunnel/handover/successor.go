//go:build linux

package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// Path is where a control socket's HTTP server takes handovers: by an upgrade of the connection.
const Path = "/v1/handover"

// upgrade is the protocol's name in HTTP's headers.
const upgrade = "muslin-handover"

// ErrNobody says that there is nobody to be replaced.
var ErrNobody = errors.New("nobody is there")

// Accept answers a request for Path, and gives the connection to talk on.
func Accept(w http.ResponseWriter, r *http.Request) (*net.UnixConn, error) {
	if r.Header.Get("Upgrade") != upgrade {
		http.Error(w, "want an upgrade to "+upgrade, http.StatusUpgradeRequired)
		return nil, errors.New("a request for a handover without its upgrade")
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("a handover over %T: want a unix socket", c)
	}
	_, err = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + upgrade + "\r\n\r\n")
	if err = errors.Join(err, rw.Flush(), u.SetDeadline(time.Time{})); err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

// Successor is a daemon's place, on its way to us.
type Successor struct {
	Offer  Offer
	conn   conn
	limits Limits
}

// Call asks the daemon behind the control socket for its place. ErrNobody: there is none. Any other error says
// why it stays; nothing has happened then.
func Call(ctx context.Context, control string, h Hello, limits Limits) (*Successor, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", control)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%s: %w", control, ErrNobody)
	case err != nil:
		return nil, err
	}
	s := &Successor{conn: conn{c.(*net.UnixConn)}, limits: limits}
	if err := s.call(h); err != nil {
		c.Close()
		return nil, err
	}
	return s, nil
}

func (s *Successor) call(h Hello) error {
	if err := s.upgrade(); err != nil {
		return err
	}
	h.Protocol = Protocol
	body, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := s.conn.say(&message{Kind: hello, Body: body}); err != nil {
		return err
	}
	m, err := s.conn.expect(offer, s.limits.Prepare)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(m.Body, &s.Offer); err != nil {
		m.close()
		return fmt.Errorf("an offer that makes no sense: %w", err)
	}
	for i, f := range m.files {
		s.Offer.Files = append(s.Offer.Files, File{m.Names[i], f})
	}
	return nil
}

// upgrade turns HTTP into messages. Nothing follows the answer before we speak.
func (s *Successor) upgrade() error {
	c := s.conn.unix
	if err := c.SetDeadline(time.Now().Add(s.limits.Prepare)); err != nil {
		return err
	}
	request := "POST " + Path + " HTTP/1.1\r\nHost: muslin\r\nConnection: Upgrade\r\nUpgrade: " + upgrade + "\r\nContent-Length: 0\r\n\r\n"
	if _, err := io.WriteString(c, request); err != nil {
		return s.conn.explain(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return s.conn.explain(err)
	}
	if answer.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	defer answer.Body.Close()
	why, _ := io.ReadAll(io.LimitReader(answer.Body, 1000)) // what there is of it
	if answer.StatusCode == http.StatusNotFound {
		return errors.New("the running daemon is of a version that cannot hand over: stop it, and start this one without --replace")
	}
	return &OtherError{strings.TrimSpace(string(why))}
}

// Take says that we are ready, and takes part after part. take is called for each, in their order, with what
// has changed since the offer, or nil from a predecessor that died. Its error is told to the predecessor, which
// then goes on. After nil everything is ours; after an error the predecessor goes on, and nothing is.
//
// A predecessor that has handed over every part, but does not end, is left behind after a while.
func (s *Successor) Take(ctx context.Context, take func(part string, changed json.RawMessage) error) error {
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.conn.unix.CloseRead() })()
	rest := s.Offer.Parts
	err := s.conn.say(&message{Kind: ready})
	for err == nil {
		var m *message
		m, err = s.conn.receive(s.limits.Prepare)
		switch {
		case ctx.Err() != nil && len(rest) > 0:
			err = context.Cause(ctx)
			s.Fail(err)
		case err != nil && (ctx.Err() != nil || errors.Is(err, errLate)) && len(rest) == 0:
			return nil
		case errors.Is(err, ErrDied):
			return takeAll(rest, take)
		case err != nil:
			s.Fail(err)
		case m.Kind == abort:
			return &OtherError{m.Reason}
		case m.Kind == left:
			return takeAll(rest, take)
		case m.Kind == yours && len(rest) > 0 && m.Part == rest[0]:
			rest = rest[1:]
			if err = take(m.Part, m.Body); err != nil {
				s.Fail(err)
				return err
			}
			err = s.conn.say(&message{Kind: taken, Part: m.Part})
		default:
			m.close()
			err = fmt.Errorf("the running daemon says %q (%s), and it is not the turn for that", m.Kind, m.Part)
			s.Fail(err)
		}
	}
	return err
}

// takeAll takes what a predecessor has left behind that is no more.
func takeAll(parts []string, take func(string, json.RawMessage) error) error {
	for _, part := range parts {
		if err := take(part, nil); err != nil {
			return err
		}
	}
	return nil
}

// Fail tells the predecessor that we do not take its place.
func (s *Successor) Fail(why error) {
	_ = s.conn.send(&message{Kind: fail, Reason: why.Error()}) // it goes on as well when it hears nothing
	s.conn.unix.Close()
}

// Close ends the connection and closes the offer's files.
func (s *Successor) Close() {
	s.conn.unix.Close()
	s.Offer.Close()
}
