package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a process was started with, by its command line and environment.
func TestStartedWith(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, content := range map[string]string{
		"password":      "secret\n",
		"networks.yaml": "etcd-endpoints: http://192.0.2.7:2379\nnetworks:\n  blue: {network: 10.1.0.0/16}\n  green: {network: 10.2.0.0/16, backend: {Type: udp}, etcd-prefix: /green}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := otherProcess{pid: os.Getpid()}
	for name, w := range map[string]struct {
		args, environ string
		net           string
		check         func(r *runFlags) bool
	}{
		"the daemon": {args: "muslin run --etcd-endpoints https://a:1,https://b:2 --etcd-cafile ca.pem --iface eth1 --state-dir=/x", check: func(r *runFlags) bool {
			return r.store.endpoints == "https://a:1,https://b:2" && r.store.caFile == filepath.Join(dir, "ca.pem") && r.iface[0] == "eth1" && r.stateDir == "/x" && r.store.prefix == "/coreos.com/network"
		}},
		"by the environment": {args: "muslin run", environ: "MUSLIN_ETCD_PREFIX=/mine FLANNELD_ETCD_ENDPOINTS=http://c:3", check: func(r *runFlags) bool {
			return r.store.prefix == "/mine" && r.store.endpoints == "http://c:3"
		}},
		"a password's file": {args: "muslin run --etcd-username me --etcd-password-file password", check: func(r *runFlags) bool {
			return r.store.username == "me" && r.store.password == "secret"
		}},
		"embedded": {args: "muslin run --embedded-etcd --embedded-etcd-port 2400", check: func(r *runFlags) bool { return r.embedded && r.embeddedPort == 2400 }},
		"flanneld": {args: "/opt/bin/flanneld -etcd-endpoints=http://d:4 -kube-subnet-mgr=false -iface eth2 --ip-masq", check: func(r *runFlags) bool {
			return r.store.endpoints == "http://d:4" && r.iface[0] == "eth2" && r.ipMasq
		}},
		"one of several": {args: "muslin run --config networks.yaml", net: "green", check: func(r *runFlags) bool {
			return r.store.prefix == "/green" && r.store.endpoints == "http://192.0.2.7:2379" && r.network == "10.2.0.0/16" && strings.HasSuffix(r.stateDir, "/green")
		}},
	} {
		flags, err := p.flags(strings.Fields(w.args), strings.Fields(w.environ), w.net)
		if err != nil || !w.check(flags) {
			t.Errorf("%s: %+v, %v", name, flags, err)
		}
	}
	if _, err := p.flags([]string{"muslin", "run", "--config", "networks.yaml"}, nil, "red"); err == nil || !strings.Contains(err.Error(), "red") {
		t.Errorf("a network that is none: %v", err)
	}
}
