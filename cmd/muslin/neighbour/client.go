package neighbour

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Why a peer does not answer. Neither is a fault by itself.
var (
	// ErrNobody: the peer's host says that nothing answers there: flannel, a muslin that does not know the question or is
	// run with --peer-answers=false, or one that does not take us for a peer.
	ErrNobody = errors.New("no muslin there answers peers: it is a flannel node, an older muslin, or was started with --peer-answers=false")
	// ErrSilent: nothing came back in time.
	ErrSilent = errors.New("nothing comes back over the overlay")
	// ErrLate: the peer's kernel took the connection, so that packets get there and back; its daemon did not answer in time.
	ErrLate = errors.New("its host takes the question, and its daemon does not answer in time: it is busy, or stuck")
	// ErrRights: it takes root to ask.
	ErrRights = errors.New("to ask a peer takes root (CAP_NET_BIND_SERVICE): a question comes from a port below 1024")
)

// Patience is how long Ask waits for a peer, if ctx has no deadline.
const Patience = 2 * time.Second

// maxAnswer is how much of an answer is read, bytes.
const maxAnswer = 1 << 20

// Ask gets the peer's answer to a question, over the overlay: from our own overlay address to the peer's, the bases of the
// two subnets. into is what the path's answer is.
func Ask(ctx context.Context, from, to netip.Addr, path string, into any) error {
	return ask(ctx, from, to, http.MethodGet, path, nil, into)
}

// Tell is Ask for a question that has more to it than a path.
func Tell(ctx context.Context, from, to netip.Addr, path string, question, into any) error {
	return ask(ctx, from, to, http.MethodPost, path, question, into)
}

func ask(ctx context.Context, from, to netip.Addr, method, path string, question, into any) error {
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, Patience)
		defer cancel()
	}
	var taken atomic.Bool
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := dial(ctx, from, to)
			taken.Store(err == nil)
			return c, err
		},
	}}
	var body io.Reader
	if question != nil {
		data, err := json.Marshal(question)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+netip.AddrPortFrom(to, Port).String()+path, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return explain(to, err, taken.Load())
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return fmt.Errorf("ask %s for %s: %w", to, req.URL.Path, ErrNobody)
	}
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("ask %s for %s: %s: %s", to, req.URL.Path, resp.Status, strings.TrimSpace(string(why)))
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into); err != nil {
		return explain(to, err, taken.Load())
	}
	return nil
}

// explain gives an error that is to be expected its name. What was taken is closed at once where the peer does not know us.
func explain(to netip.Addr, err error, taken bool) error {
	var why error
	switch timeout := net.Error(nil); {
	case errors.Is(err, unix.EACCES):
		why = ErrRights
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET), errors.Is(err, io.EOF):
		why = ErrNobody
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		if why = ErrSilent; taken {
			why = ErrLate
		}
	default:
		return fmt.Errorf("ask %s: %w", to, err)
	}
	return fmt.Errorf("ask %s: %w", to, why)
}
