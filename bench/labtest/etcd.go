//go:build linux

package labtest

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
)

// Prefix is where flannel, and so muslin, has its keys in etcd.
const Prefix = "/coreos.com/network"

// Endpoint is where a host's etcd, embedded or not, serves its clients without TLS.
func Endpoint(h *lab.Host) string { return fmt.Sprintf("http://%s:2379", h.Addr) }

// Etcd is a real etcd server on a host, and etcdctl beside it.
type Etcd struct {
	Host *lab.Host
	Proc *lab.Proc // nil of a server that was not started here
	Args []string  // of the server
	Ctl  []string  // flags of etcdctl: endpoints, CA, user
}

// EtcdOn is a server that runs already, such as an embedded one: for etcdctl.
func EtcdOn(h *lab.Host) *Etcd { return &Etcd{Host: h} }

// StartEtcd starts etcd on loopback and on the host's address, alone and without TLS.
func StartEtcd(t *testing.T, h *lab.Host, flags ...string) *Etcd {
	t.Helper()
	lab.RequireTool(t, "etcd", "etcdctl")
	e := &Etcd{Host: h, Args: append([]string{
		"etcd", "--data-dir", filepath.Join(h.Dir, "etcd"),
		"--listen-client-urls", "http://127.0.0.1:2379," + Endpoint(h),
		"--advertise-client-urls", Endpoint(h),
		"--listen-peer-urls", "http://127.0.0.1:2380",
		"--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "default=http://127.0.0.1:2380",
		"--logger", "zap", "--log-outputs", "stderr",
	}, flags...)}
	e.Start(t)
	return e
}

// StartTLSEtcd starts an etcd on loopback whose certificate is signed by a CA of its own, and returns the
// CA's file.
func StartTLSEtcd(t *testing.T, h *lab.Host) (*Etcd, string) {
	t.Helper()
	lab.RequireTool(t, "etcd", "etcdctl")
	ca := NewAuthority(t, h.Dir, "ca")
	pair := ca.Issue(t, h.Dir, "etcd", h.Addr)
	e := &Etcd{Host: h, Ctl: []string{"--endpoints", "https://127.0.0.1:2379", "--cacert", ca.File}, Args: []string{
		"etcd", "--data-dir", filepath.Join(h.Dir, "etcd"),
		"--listen-client-urls", "https://127.0.0.1:2379",
		"--advertise-client-urls", "https://127.0.0.1:2379",
		"--cert-file", pair.Cert, "--key-file", pair.Key,
		"--listen-peer-urls", "http://127.0.0.1:2380",
		"--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "default=http://127.0.0.1:2380",
		"--logger", "zap", "--log-outputs", "stderr",
	}}
	e.Start(t)
	return e, ca.File
}

// Launch starts the server, for the first time or again, and does not wait.
func (e *Etcd) Launch(t *testing.T) {
	t.Helper()
	e.Proc = Must(e.Host.Start("etcd", nil, e.Args...))(t)
}

// Start starts the server, for the first time or again, and waits until it answers.
func (e *Etcd) Start(t *testing.T) {
	t.Helper()
	e.Launch(t)
	e.WaitHealthy(t)
}

// WaitHealthy waits until the server answers, which it does not without its cluster's quorum.
func (e *Etcd) WaitHealthy(t *testing.T) {
	t.Helper()
	Eventually(t, 15*time.Second, func() error {
		_, err := e.Try(t, "endpoint", "health")
		return err
	})
}

// Try runs etcdctl.
func (e *Etcd) Try(t *testing.T, args ...string) (string, error) {
	command := append([]string{"env", "ETCDCTL_API=3", "etcdctl", "--dial-timeout=" + lab.Patience(2*time.Second).String(), "--command-timeout=" + lab.Patience(5*time.Second).String()}, e.Ctl...)
	return e.Host.Run(t.Context(), append(command, args...)...)
}

// Do runs etcdctl and wants it to succeed.
func (e *Etcd) Do(t *testing.T, args ...string) string {
	t.Helper()
	return Must(e.Try(t, args...))(t)
}

// Config writes the network's config as an operator does for flannel.
func (e *Etcd) Config(t *testing.T, json string) {
	t.Helper()
	e.Do(t, "put", Prefix+"/config", json)
}

// Get is the value of a key below the prefix.
func (e *Etcd) Get(t *testing.T, key string) string {
	t.Helper()
	return strings.TrimSpace(e.Do(t, "get", "--print-value-only", Prefix+key))
}

// Subnets lists the keys under the leases' prefix.
func (e *Etcd) Subnets(t *testing.T) []string {
	t.Helper()
	return strings.Fields(e.Do(t, "get", "--prefix", "--keys-only", Prefix+"/subnets"))
}

// LeaseKey is the key of a subnet, as status prints it, below the prefix.
func LeaseKey(subnet fmt.Stringer) string {
	return "/subnets/" + strings.ReplaceAll(subnet.String(), "/", "-")
}
