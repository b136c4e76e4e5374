//go:build linux

package fault

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// members is the size of the etcd cluster.
const members = 3

// cluster is etcd on the hosts h1 to h3, each member with etcdctl beside it.
type cluster struct {
	members []*labtest.Etcd
	scheme  string
	ctl     []string // flags of etcdctl beside the endpoints
	muslin  []string // flags of muslin beside the endpoints
}

// clusterOptions are what the members and their clients get beside names and places.
type clusterOptions struct {
	scheme  string                                 // "" means http
	flags   func(l *lab.Lab, h *lab.Host) []string // of the server; may be nil
	ctl     func(l *lab.Lab) []string
	muslin  func(l *lab.Lab) []string
	prepare func(t *testing.T, c *cluster) // done once the cluster answers; may be nil
}

func startCluster(t *testing.T, l *lab.Lab, o clusterOptions) *cluster {
	t.Helper()
	lab.RequireTool(t, "etcd", "etcdctl")
	c := &cluster{scheme: o.scheme}
	if c.scheme == "" {
		c.scheme = "http"
	}
	if o.ctl != nil {
		c.ctl = o.ctl(l)
	}
	if o.muslin != nil {
		c.muslin = o.muslin(l)
	}
	hosts := l.Hosts()[:members]
	for _, h := range hosts {
		args := memberArgs(hosts, h, c.scheme, "first")
		if o.flags != nil {
			args = append(args, o.flags(l, h)...)
		}
		c.members = append(c.members, &labtest.Etcd{Host: h, Args: args})
	}
	for _, m := range c.members {
		m.Ctl = append([]string{"--endpoints", c.url(m.Host)}, c.ctl...)
		m.Launch(t)
	}
	for _, m := range c.members {
		m.WaitHealthy(t)
	}
	if o.prepare != nil {
		o.prepare(t, c)
	}
	return c
}

// memberArgs are the flags of one member. life tells a cluster from the one whose snapshot it was made of.
func memberArgs(hosts []*lab.Host, h *lab.Host, scheme, life string) []string {
	client := fmt.Sprintf("%s://%s:2379", scheme, h.Addr)
	return append([]string{
		"etcd", "--name", h.Name, "--data-dir", dataDir(h, life),
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peerURL(h), "--logger", "zap", "--log-outputs", "stderr",
		// On a machine that does much else a second without a heartbeat is no dead leader.
		"--heartbeat-interval", "200", "--election-timeout", "2000",
	}, clusterArgs(hosts, h, life)...)
}

// clusterArgs are those that making a member of a snapshot needs too.
func clusterArgs(hosts []*lab.Host, h *lab.Host, life string) []string {
	var all []string
	for _, o := range hosts {
		all = append(all, o.Name+"="+peerURL(o))
	}
	return []string{"--initial-advertise-peer-urls", peerURL(h), "--initial-cluster", strings.Join(all, ","), "--initial-cluster-token", life}
}

func peerURL(h *lab.Host) string { return fmt.Sprintf("http://%s:2380", h.Addr) }

func dataDir(h *lab.Host, life string) string { return filepath.Join(h.Dir, "etcd-"+life) }

func (c *cluster) url(h *lab.Host) string { return fmt.Sprintf("%s://%s:2379", c.scheme, h.Addr) }

func (c *cluster) endpoints() string {
	var all []string
	for _, m := range c.members {
		all = append(all, c.url(m.Host))
	}
	return strings.Join(all, ",")
}

// flags are muslin's.
func (c *cluster) flags() []string {
	return append([]string{"--etcd-endpoints", c.endpoints()}, c.muslin...)
}

// do runs etcdctl with every member as its endpoints.
func (c *cluster) do(t *testing.T, args ...string) string {
	t.Helper()
	return labtest.Must(c.try(t, args...))(t)
}

func (c *cluster) try(t *testing.T, args ...string) (string, error) {
	all := *c.members[0]
	all.Ctl = append([]string{"--endpoints", c.endpoints()}, c.ctl...)
	return all.Try(t, args...)
}

// eventually is do for a cluster that may need a moment.
func (c *cluster) eventually(t *testing.T, args ...string) {
	t.Helper()
	labtest.Eventually(t, 20*time.Second, func() error {
		_, err := c.try(t, args...)
		return err
	})
}

func (c *cluster) config(t *testing.T, json string) {
	t.Helper()
	c.do(t, "put", labtest.Prefix+"/config", json)
}

// leases are the keys under the leases' prefix.
func (c *cluster) leases(t *testing.T) []string {
	t.Helper()
	return strings.Fields(c.do(t, "get", "--prefix", "--keys-only", labtest.Prefix+"/subnets"))
}

// lease is a lease's value.
func (c *cluster) lease(t *testing.T, subnet fmt.Stringer) string {
	t.Helper()
	return strings.TrimSpace(c.do(t, "get", "--print-value-only", labtest.Prefix+labtest.LeaseKey(subnet)))
}

// memberState is what `etcdctl endpoint status --write-out json` says of a member.
type memberState struct {
	Endpoint string
	Status   struct {
		Header struct {
			MemberID uint64 `json:"member_id"`
			Revision int64  `json:"revision"`
		} `json:"header"`
		Leader uint64 `json:"leader"`
	}
}

func (c *cluster) states(t *testing.T) []memberState {
	t.Helper()
	var states []memberState
	out := c.do(t, "endpoint", "status", "--write-out", "json")
	if err := json.Unmarshal([]byte(out), &states); err != nil || len(states) != members {
		t.Fatalf("%v in %s", err, out)
	}
	return states
}

// revision is the store's.
func (c *cluster) revision(t *testing.T) int64 {
	t.Helper()
	newest := int64(0)
	for _, s := range c.states(t) {
		newest = max(newest, s.Status.Header.Revision)
	}
	return newest
}

// roles are the member that leads, and those that follow.
func (c *cluster) roles(t *testing.T) (leader *labtest.Etcd, followers []*labtest.Etcd) {
	t.Helper()
	for _, s := range c.states(t) {
		i := slices.IndexFunc(c.members, func(m *labtest.Etcd) bool { return c.url(m.Host) == s.Endpoint })
		if s.Status.Header.MemberID == s.Status.Leader {
			leader = c.members[i]
		} else {
			followers = append(followers, c.members[i])
		}
	}
	if leader == nil {
		t.Fatalf("no member leads: %+v", c.states(t))
	}
	return leader, followers
}
