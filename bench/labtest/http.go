//go:build linux

package labtest

import (
	"context"
	"net"
	"net/http"
	"time"

	"muslin/bench/lab"
)

// HTTPClient asks from within a node's namespace.
func HTTPClient(n *lab.Node) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			return conn, n.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
		},
	}}
}
