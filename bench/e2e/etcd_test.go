//go:build linux

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
)

const prefix = "/coreos.com/network"

// etcdServer is a real etcd server on a host.
type etcdServer struct {
	host *lab.Host
	proc *lab.Proc
	args []string // of the server
	ctl  []string // of etcdctl: scheme, CA
}

// startEtcd starts etcd on loopback and on the host's address.
func startEtcd(t *testing.T, h *lab.Host) *etcdServer {
	t.Helper()
	lab.RequireTool(t, "etcd", "etcdctl")
	e := &etcdServer{host: h, args: []string{
		"etcd", "--data-dir", filepath.Join(h.Dir, "etcd"),
		"--listen-client-urls", "http://127.0.0.1:2379," + endpoint(h),
		"--advertise-client-urls", endpoint(h),
		"--listen-peer-urls", "http://127.0.0.1:2380",
		"--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "default=http://127.0.0.1:2380",
		"--logger", "zap", "--log-outputs", "stderr",
	}}
	e.start(t)
	return e
}

func (e *etcdServer) start(t *testing.T) {
	t.Helper()
	e.proc = must(e.host.Start("etcd", nil, e.args...))(t)
	eventually(t, 15*time.Second, func() error {
		_, err := e.try(t, "endpoint", "health")
		return err
	})
}

func (e *etcdServer) try(t *testing.T, args ...string) (string, error) {
	command := append([]string{"env", "ETCDCTL_API=3", "etcdctl", "--dial-timeout=" + lab.Patience(2*time.Second).String(), "--command-timeout=" + lab.Patience(5*time.Second).String()}, e.ctl...)
	return e.host.Run(t.Context(), append(command, args...)...)
}

// do runs etcdctl.
func (e *etcdServer) do(t *testing.T, args ...string) string {
	t.Helper()
	return must(e.try(t, args...))(t)
}

// config writes the network's config as an operator does for flannel.
func (e *etcdServer) config(t *testing.T, json string) {
	t.Helper()
	e.do(t, "put", prefix+"/config", json)
}

// get is the value of a key below the prefix.
func (e *etcdServer) get(t *testing.T, key string) string {
	t.Helper()
	return strings.TrimSpace(e.do(t, "get", "--print-value-only", prefix+key))
}

// subnets lists the keys under the leases' prefix.
func (e *etcdServer) subnets(t *testing.T) []string {
	t.Helper()
	return strings.Fields(e.do(t, "get", "--prefix", "--keys-only", prefix+"/subnets"))
}

const vxlanConfig = `{"Network":"` + network + `","Backend":{"Type":"vxlan"}}`

// leaseKey is the key of a subnet, as status prints it.
func leaseKey(subnet fmt.Stringer) string {
	return "/subnets/" + strings.ReplaceAll(subnet.String(), "/", "-")
}
