//go:build linux

package fault

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// fromDocs is the block of commands that follows a comment in docs/etcd.md.
func fromDocs(t *testing.T, comment string) string {
	t.Helper()
	page := string(labtest.Must(os.ReadFile("../../docs/etcd.md"))(t))
	_, after, found := strings.Cut(page, "<!-- "+comment+" -->\n```sh\n")
	block, _, closed := strings.Cut(after, "```")
	if !found || !closed || !strings.Contains(block, "etcdctl ") {
		t.Fatalf("docs/etcd.md has no commands after %q", comment)
	}
	return block
}

// operate runs such blocks as an operator would on the first host, with the two password files.
func (c *cluster) operate(t *testing.T, blocks ...string) {
	t.Helper()
	h := c.members[0].Host
	for _, user := range []string{"root", "muslin"} {
		if err := os.WriteFile(filepath.Join(h.Dir, user+"-password"), []byte(user+"-secret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"env", "ETCDCTL_API=3", "ETCDCTL_ENDPOINTS=" + c.endpoints()}
	for i := 0; i+1 < len(c.ctl); i += 2 { // --cacert FILE is ETCDCTL_CACERT=FILE
		env = append(env, "ETCDCTL_"+strings.ToUpper(strings.TrimPrefix(c.ctl[i], "--"))+"="+c.ctl[i+1])
	}
	for _, block := range blocks {
		labtest.Must(h.Run(t.Context(), append(env, "sh", "-ec", "cd "+h.Dir+"\n"+block)...))(t)
	}
}

// as makes etcdctl act for a user from here on.
func (c *cluster) as(user string) {
	c.ctl = append(c.ctl, "--user", user+":"+user+"-secret")
	for _, m := range c.members {
		m.Ctl = append(m.Ctl, "--user", user+":"+user+"-secret")
	}
}

// works wants all that a daemon does to be possible for its user.
func (s *scene) works() {
	s.Helper()
	s.peersRight(time.Now(), 10*time.Second)
	for i := range s.nodes {
		s.deleteLease(i)
	}
	s.cluster.config(s.T, `{"Network":"10.245.0.0/16","Backend":{"Type":"vxlan"}}`)
	for i := range s.nodes {
		s.warned(i, 5*time.Second, "now 10.245.0.0/16")
	}
	s.cluster.config(s.T, labtest.VXLANConfig)
	s.quiet(10 * time.Second)
}

// The commands of docs/etcd.md give a daemon what it needs, and nothing else. When some of it is taken away, that
// is said, and traffic goes on.
func TestLeastRole(t *testing.T) {
	s := newScene(t, 1, clusterOptions{
		prepare: func(t *testing.T, c *cluster) {
			c.operate(t, fromDocs(t, "least role"), fromDocs(t, "authentication"))
			c.muslin = []string{"--etcd-username", "muslin", "--etcd-password-file", filepath.Join(c.members[0].Host.Dir, "muslin-password")}
			c.as("root")
		},
	})
	s.works()
	user := *s.cluster
	user.ctl = []string{"--user", "muslin:muslin-secret"}
	for _, command := range []string{
		"put " + labtest.Prefix + "/config nonsense",
		"put " + labtest.Prefix + "/else nonsense",
		"get " + labtest.Prefix + "/else",
		"get --prefix /",
		"user list",
	} {
		if out, err := user.try(t, strings.Fields(command)...); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("user muslin: %s: %v %s", command, err, out)
		}
	}
	s.cluster.do(t, "role", "revoke-permission", "muslin", labtest.Prefix+"/config")
	log := labtest.ExpectExit(t, labtest.LaunchMuslin(t, s.lab.Host(6), s.cluster.flags()...).Proc, 1)
	labtest.ExpectWords(t, log, `user "muslin" may not`)
	s.cluster.do(t, "role", "revoke-permission", "muslin", "--prefix=true", labtest.Prefix+"/subnets")
	subnet := labtest.Status(t, s.nodes[0]).Node.Subnet
	s.cluster.do(t, "del", labtest.Prefix+labtest.LeaseKey(subnet))
	s.warned(0, 20*time.Second, `user "muslin" may not`)
	for i := range s.nodes {
		s.eventually(i, time.Now(), time.Second, func(st *lab.Status) error { return s.knowsOthers(i, st) })
	}
	s.cluster.do(t, "role", "grant-permission", "muslin", "readwrite", "--prefix=true", labtest.Prefix+"/subnets")
	s.cluster.do(t, "role", "grant-permission", "muslin", "read", labtest.Prefix+"/config")
	s.quiet(90 * time.Second) // the back-off of the write
	s.untouched()
}

// The common name of the daemons' certificate is their user.
func TestUserByCertificate(t *testing.T) {
	var files map[string]labtest.Pair
	flags := func(l *lab.Lab, user string, names ...string) []string {
		return []string{names[0], filepath.Join(l.Dir(), "ca.pem"), names[1], files[user].Cert, names[2], files[user].Key}
	}
	s := newScene(t, 0, clusterOptions{
		scheme: "https",
		flags: func(l *lab.Lab, h *lab.Host) []string {
			server := files["etcd-"+h.Name]
			return []string{"--cert-file", server.Cert, "--key-file", server.Key, "--client-cert-auth", "--trusted-ca-file", filepath.Join(l.Dir(), "ca.pem")}
		},
		ctl: func(l *lab.Lab) []string {
			ca := labtest.NewAuthority(t, l.Dir(), "ca")
			files = map[string]labtest.Pair{"root": ca.Issue(t, l.Dir(), "root"), "muslin": ca.Issue(t, l.Dir(), "muslin")}
			for _, h := range l.Hosts()[:members] {
				files["etcd-"+h.Name] = ca.Issue(t, l.Dir(), "etcd-"+h.Name, h.Addr)
			}
			return flags(l, "root", "--cacert", "--cert", "--key")
		},
		muslin: func(l *lab.Lab) []string {
			return flags(l, "muslin", "--etcd-cafile", "--etcd-certfile", "--etcd-keyfile")
		},
		prepare: func(t *testing.T, c *cluster) {
			role, _, found := strings.Cut(fromDocs(t, "least role"), "etcdctl user add")
			if !found {
				t.Fatal("the block has no user in it")
			}
			c.operate(t, role, fromDocs(t, "user without a password"), fromDocs(t, "authentication"))
		},
	})
	s.works()
	s.untouched()
}

// Two hosts are given one PublicIP. The one that was there first stays, and both say so.
func TestTwoHostsWithOnePublicIP(t *testing.T) {
	s := newScene(t, 1, clusterOptions{})
	addr := s.nodes[0].Host.Addr.String()
	before := s.cluster.lease(t, labtest.Status(t, s.nodes[0]).Node.Subnet)
	newcomer := labtest.LaunchMuslin(t, s.lab.Host(6), append(s.cluster.flags(), "--public-ip", addr)...)
	log := labtest.ExpectExit(t, newcomer.Proc, 1)
	labtest.ExpectWords(t, log, "another host uses our PublicIP", addr, labtest.Status(t, s.nodes[0]).Node.VtepMAC, "--public-ip")
	s.warned(0, 10*time.Second, "two hosts have PublicIP "+addr)
	s.logged(0, "two hosts have PublicIP "+addr)
	if after := s.cluster.lease(t, labtest.Status(t, s.nodes[0]).Node.Subnet); after != before {
		t.Errorf("lease %s, want %s", after, before)
	}
	s.peersRight(time.Now(), 5*time.Second)
	all := s.stop()
	if from := all[0]; from.Lost != 0 {
		t.Errorf("from the first host: %v", from)
	}
	// As with a lease that is written over: what was sent to the other one's MAC in between is lost.
	if to := all[1]; to.Lost > 500 {
		t.Errorf("to the first host: %v", to)
	}
}
