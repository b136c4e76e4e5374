//go:build linux

package crowd

import (
	"context"
	"fmt"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"muslin/bench/lab"
)

// DialFrom connects to an etcd from a node of a lab, wherever this process stands.
func DialFrom(from *lab.Node, endpoint string) (*clientv3.Client, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		DialTimeout: lab.Patience(5 * time.Second),
		Logger:      zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (conn net.Conn, err error) {
			return conn, from.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
				return err
			})
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %s: %w", endpoint, err)
	}
	return client, nil
}
