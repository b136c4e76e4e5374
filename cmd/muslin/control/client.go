package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// What the daemon is asked, by HTTP on the control socket. The first two take net=NAME where a process has several networks.
//
// The status with peers=none, or with peers= and subnets with commas between them, has those peers alone (Peers); the counts of all are there
// in any case. With watch=1, or with watch= and subnets, somebody looks on at all or at those peers: the daemon measures their
// round trips and loss each second for some seconds more.
const (
	StatusPath   = "/v1/status"   // Status
	RoutePath    = "/v1/route"    // RouteAnswer; to=ADDRESS
	NetworksPath = "/v1/networks" // Networks
)

// AskStatus gets the status from the daemon behind the control socket.
func AskStatus(ctx context.Context, control string) (*Status, error) {
	return AskNetwork(ctx, control, "")
}

// AskNetwork gets that of one of several networks; without a name there has to be but one.
func AskNetwork(ctx context.Context, control, name string) (*Status, error) {
	return askStatus(ctx, control, name, url.Values{})
}

// Look is what somebody who looks on wants to know of the peers.
type Look struct {
	Peers Peers // that the status has
	Watch Peers // whose round trips and loss are to be as fresh as they can be
}

// Watch is AskNetwork for somebody who looks on. A daemon that does not know of Look.Peers answers with all of them.
func Watch(ctx context.Context, control, name string, look Look) (*Status, error) {
	values := url.Values{}
	if !look.Peers.All {
		values.Set(peersKey, look.Peers.String())
	}
	switch {
	case look.Watch.All:
		values.Set(watchKey, "1")
	case len(look.Watch.Subnets) > 0:
		values.Set(watchKey, look.Watch.String())
	}
	return askStatus(ctx, control, name, values)
}

// Without is AskNetwork without any peer, which costs as much among ten thousand of them as among ten.
func Without(ctx context.Context, control, name string) (*Status, error) {
	return askStatus(ctx, control, name, url.Values{peersKey: {noPeers}})
}

// Keys of a question for the status.
const (
	peersKey = "peers"
	watchKey = "watch"
)

const noPeers = "none"

// Peers are all peers, or those that have some subnets; the zero value is none.
type Peers struct {
	All     bool
	Subnets []netip.Prefix
}

// AllPeers are they.
var AllPeers = Peers{All: true}

// String is as it stands in a question.
func (p Peers) String() string {
	if len(p.Subnets) == 0 {
		return noPeers
	}
	var all []string
	for _, s := range p.Subnets {
		all = append(all, s.String())
	}
	return strings.Join(all, ",")
}

// ParseLook reads a question for the status.
func ParseLook(r *http.Request) (look Look, err error) {
	values := r.URL.Query()
	if look.Peers, err = ParsePeers(values.Get(peersKey)); err != nil {
		return look, fmt.Errorf("peers=%s: want %s, or subnets with commas between: %w", values.Get(peersKey), noPeers, err)
	}
	switch text := values.Get(watchKey); {
	case text == "":
	case !strings.Contains(text, "/"):
		look.Watch = AllPeers
	default:
		if look.Watch, err = ParsePeers(text); err != nil {
			return look, fmt.Errorf("watch=%s: want 1, or subnets with commas between: %w", text, err)
		}
	}
	return look, nil
}

// ParsePeers reads Peers as String writes them; empty: all.
func ParsePeers(text string) (p Peers, err error) {
	switch text {
	case "":
		return AllPeers, nil
	case noPeers:
		return p, nil
	}
	for one := range strings.SplitSeq(text, ",") {
		s, err := netip.ParsePrefix(one)
		if err != nil {
			return p, err
		}
		p.Subnets = append(p.Subnets, s)
	}
	return p, nil
}

func askStatus(ctx context.Context, control, name string, values url.Values) (*Status, error) {
	var s Status
	if name != "" {
		values.Set("net", name)
	}
	path := StatusPath
	if len(values) > 0 {
		path += "?" + values.Encode()
	}
	if err := Ask(ctx, control, path, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// Ask gets what the daemon behind the control socket has at a path, as JSON.
func Ask(ctx context.Context, control, path string, into any) error {
	return ask(ctx, control, http.MethodGet, path, nil, into)
}

// Order posts what the daemon is to do, as JSON, and gets its answer.
func Order(ctx context.Context, control, path string, order, into any) error {
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	return ask(ctx, control, http.MethodPost, path, bytes.NewReader(body), into)
}

func ask(ctx context.Context, control, method, path string, body io.Reader, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", control)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://muslin"+path, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return explain(control, err)
	}
	defer resp.Body.Close()
	if err := refusal(control, resp); err != nil {
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

// refusal is an answer's error, if it is one.
func refusal(control string, resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotFound:
		return fmt.Errorf("the daemon behind %s is of another version, which does not know the question %s: `muslin run --replace` puts this one in its place", control, resp.Request.URL.Path)
	case http.StatusMultipleChoices:
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("%w: the process behind %s: %s", ErrSeveral, control, strings.TrimSpace(string(why)))
	case http.StatusServiceUnavailable:
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("%w: the daemon behind %s: %s", ErrUnavailable, control, strings.TrimSpace(string(why)))
	default:
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("the daemon behind %s answered %s: %s", control, resp.Status, strings.TrimSpace(string(why)))
	}
}

// Stream is an answer that goes on until either end has had enough.
type Stream struct {
	Body io.Reader
	conn *net.UnixConn
}

// Open asks for a stream. It is to be closed.
func Open(ctx context.Context, control, path string) (*Stream, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", control)
	if err != nil {
		return nil, explain(control, err)
	}
	s := &Stream{conn: conn.(*net.UnixConn)}
	if s.Body, err = s.ask(ctx, control, path); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stream) ask(ctx context.Context, control, path string) (io.Reader, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://muslin"+path, nil)
	if err != nil {
		return nil, err
	}
	if err := s.conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if err := req.Write(s.conn); err != nil {
		return nil, explain(control, err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(s.conn), req)
	if err != nil {
		return nil, explain(control, err)
	}
	if err := refusal(control, resp); err != nil {
		return nil, err
	}
	return resp.Body, s.conn.SetDeadline(time.Time{})
}

// Enough tells the daemon to end the stream: Body has what is left, for which there is so much time, and then ends.
func (s *Stream) Enough(patience time.Duration) {
	_ = s.conn.CloseWrite() // or it is closed already
	_ = s.conn.SetReadDeadline(time.Now().Add(patience))
}

// Close ends it at once.
func (s *Stream) Close() { s.conn.Close() }

// ErrUnavailable says that a daemon is there, and cannot answer yet.
var ErrUnavailable = errors.New("not now")

// ErrNobody says that no daemon is behind a control socket.
var ErrNobody = errors.New("no daemon")

func explain(control string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w behind %s: start one with \"muslin run\", or say where its socket is with --control", ErrNobody, control)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the control socket %s is not ours to open: run this as the daemon's user (root)", control)
	}
	return fmt.Errorf("ask the daemon behind %s: %w", control, err)
}
