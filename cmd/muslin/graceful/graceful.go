// Package graceful serves HTTP until it is told to stop, and finishes what it has begun to answer.
package graceful

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// patience is how long what was begun may take at the end.
const patience = time.Second

// Serve answers on l, which it closes, until ctx ends, which gives nil, or l fails. What streams has to end with ctx by
// itself, as with it for a BaseContext.
func Serve(ctx context.Context, srv *http.Server, l net.Listener) error {
	var g errgroup.Group
	ended := make(chan struct{})
	g.Go(func() error {
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
		}
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		if srv.Shutdown(late) != nil {
			return srv.Close()
		}
		return nil
	})
	err := srv.Serve(l)
	close(ended)
	if errors.Is(err, http.ErrServerClosed) {
		return g.Wait()
	}
	return errors.Join(err, g.Wait())
}
