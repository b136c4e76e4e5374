package main

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// process is a command line of `muslin run --config networks.yaml`.
func process(t testing.TB, args ...string) *processSettings {
	t.Helper()
	p := &processSettings{flags: new(runFlags), set: pflag.NewFlagSet("run", pflag.ContinueOnError), log: slog.New(slog.DiscardHandler)}
	p.flags.register(p.set)
	if err := p.set.Parse(append([]string{"--config", "networks.yaml"}, args...)); err != nil {
		t.Fatal(err)
	}
	return p
}

// networksOf reads a file's content as the process would.
func networksOf(t testing.TB, p *processSettings, content string) (map[string]*networkSettings, error) {
	t.Helper()
	all, err := parseNetworks(p, []byte(content))
	if err == nil {
		err = checkNetworks(p, all)
	}
	byName := make(map[string]*networkSettings)
	for _, s := range all {
		byName[s.name] = s
	}
	return byName, err
}

const goodNetworks = `# three networks
etcd-endpoints: [http://192.0.2.1:2379, http://192.0.2.2:2379]
iface: [eth1]
networks:
  blue:
  green:
    iface: [eth2, eth3]
    network: 10.2.0.0/16
    backend: {Type: vxlan, VNI: 2, Port: 8473}
    ip-masq: true
    subnet-lease-renew-margin: 30
  red:
    etcd-prefix: /elsewhere
    network: 10.3.0.0/16
    backend: udp
    state-dir: /srv/red
    control: /srv/red.sock
    tun-name: red0
    subnet-file: /srv/red.env
`

// A network has what the file says of it, else what the file says of all, else what the command line says, and the rest
// follows from its name.
func TestNetworksFile(t *testing.T) {
	p := process(t, "--state-dir=/var/lib/m", "--control=/run/m/m.sock", "--etcd-username=root", "--etcd-password=secret", "--iface=eth0", "--queues=2", "--log-level=debug", "--healthz-port=9000")
	all, err := networksOf(t, p, goodNetworks)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]map[string]string{
		"blue": {
			"etcd-endpoints": "http://192.0.2.1:2379,http://192.0.2.2:2379", "etcd-username": "root", "etcd-password": "secret", "etcd-prefix": "/coreos.com/network/blue",
			"iface": "[eth1]", "queues": "2", "state-dir": "/var/lib/m/blue", "control": "/run/m/blue.sock", "tun-name": "mu-blue",
			"subnet-file": "/run/flannel/networks/blue.env", "network": "", "ip-masq": "false", "healthz-port": "0", "config": "",
		},
		"green": {
			"iface": "[eth2,eth3]", "network": "10.2.0.0/16", "backend": `{"Port":8473,"Type":"vxlan","VNI":2}`, "ip-masq": "true", "subnet-lease-renew-margin": "30",
			"etcd-prefix": "/coreos.com/network/green", "queues": "2",
		},
		"red": {
			"etcd-prefix": "/elsewhere", "backend": "udp", "state-dir": "/srv/red", "control": "/srv/red.sock", "tun-name": "red0", "subnet-file": "/srv/red.env",
		},
	} {
		if all[name] == nil {
			t.Fatalf("no network %s in %v", name, slices.Sorted(maps.Keys(all)))
		}
		got := flagValues(all[name].set)
		for flag, value := range want {
			if got[flag] != value {
				t.Errorf("network %s: %s is %q, want %q", name, flag, got[flag], value)
			}
		}
	}
	if len(all) != 3 {
		t.Errorf("%d networks", len(all))
	}

	// JSON is YAML, and the same network is the same.
	again, err := networksOf(t, p, "{\n\t\"etcd-endpoints\": \"http://192.0.2.1:2379,http://192.0.2.2:2379\",\n\t\"iface\": \"eth1\",\n\t\"networks\": {\n\t\t\"blue\": {\"queues\": 3},\n\t\t\"green\": {\"iface\": [\"eth2\", \"eth3\"], \"network\": \"10.2.0.0/16\", \"ip-masq\": true, \"subnet-lease-renew-margin\": 30, \"backend\": {\"Type\": \"vxlan\", \"VNI\": 2, \"Port\": 8473}}\n\t}\n}\n")
	if err != nil {
		t.Fatal(err)
	}
	if !again["green"].same(all["green"]) || again["blue"].same(all["blue"]) {
		t.Errorf("the same: green %v, blue %v; want green alone", again["green"].same(all["green"]), again["blue"].same(all["blue"]))
	}
}

// What the file says of the page is the process's, and counts before the command line.
func TestNetworksFilePage(t *testing.T) {
	p := process(t, "--web=9001")
	if _, err := networksOf(t, p, "web: 9002\nweb-token-file: /etc/muslin/token\nnetworks:\n  blue:\n"); err != nil {
		t.Fatal(err)
	}
	if err := p.takeFromFile(); err != nil {
		t.Fatal(err)
	}
	if p.flags.web != "9002" || p.flags.webToken != "/etc/muslin/token" {
		t.Errorf("the page is at %q, its token in %q", p.flags.web, p.flags.webToken)
	}
	all, err := networksOf(t, p, goodNetworks)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.inFile) > 0 || len(p.taken) == 0 || all["blue"].flags.web != "" {
		t.Errorf("in the file %v, taken %v, of a network %q", p.inFile, p.taken, all["blue"].flags.web)
	}
}

// The nearer of two that exclude each other counts.
func TestNetworksFilePasswords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(path, []byte("inner\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := networksOf(t, process(t, "--etcd-password=outer"), "networks:\n  a: {etcd-password-file: "+path+"}\n  b: {}\n  c: {etcd-password: own}\n")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "inner", "b": "outer", "c": "own"} {
		if got := all[name].flags.store.password; got != want {
			t.Errorf("network %s: password %q, want %q", name, got, want)
		}
	}
}

func TestNetworksFileRefusals(t *testing.T) {
	two := func(a, b string) string { return "networks:\n  a: {" + a + "}\n  b: {" + b + "}\n" }
	for name, c := range map[string]struct{ content, want string }{
		"page of one":      {"networks: {a: {web: 9000}}\n", `network a: web is the process's: give it beside "networks", or on the command line`},
		"empty":            {"", "networks.yaml: the file is empty"},
		"a comment":        {"# later\n", "networks.yaml: the file is empty"},
		"no YAML":          {"networks:\n\ta: {}\n", "networks.yaml: no YAML: line 2"},
		"unclosed":         {"networks: {a: {}\n", "networks.yaml: no YAML: line"},
		"two documents":    {"networks: {a: {}}\n---\nnetworks: {b: {}}\n", ":2: a second document"},
		"a list":           {"- a\n", ":1: the file: want a map"},
		"no networks":      {"iface: eth0\n", `:1: no "networks"`},
		"none":             {"\nnetworks: {}\n", ":2: networks: there is none"},
		"null":             {"networks:\n", ":1: networks: want a map"},
		"a word":           {"networks: blue\n", ":1: networks: want a map"},
		"network a word":   {"networks:\n  a: eth0\n", ":2: network a: want a map"},
		"twice":            {"networks:\n  a: {}\n  b: {}\n  a: {}\n", `:4: networks: "a" is there twice, in line 2, too`},
		"flag twice":       {"networks:\n  a:\n    iface: eth0\n    iface: eth1\n", `:4: network a: "iface" is there twice, in line 3, too`},
		"key twice":        {"networks: {a: {}}\nnetworks: {b: {}}\n", `:2: the file: "networks" is there twice`},
		"unknown":          {"networks:\n  a:\n    ifcae: eth0\n", `:3: network a: unknown setting "ifcae": want a flag`},
		"unknown for all":  {"etcd-endpoint: x\nnetworks: {a: {}}\n", `:1: unknown setting "etcd-endpoint"`},
		"dashes":           {"networks:\n  a:\n    --iface: eth0\n", `:3: network a: unknown setting "--iface": leave the dashes out`},
		"merge":            {"x: &x {iface: eth0}\nnetworks:\n  a:\n    <<: *x\n", `:4: network a: unknown setting "<<"`},
		"process's":        {"networks:\n  a:\n    log-level: debug\n", ":3: network a: log-level is the process's"},
		"process's of all": {"healthz-port: 1\nnetworks: {a: {}}\n", ":1: healthz-port is the process's"},
		"config":           {"networks:\n  a: {config: other.yaml}\n", ":2: network a: config is the process's"},
		"replace":          {"networks:\n  a: {replace: true}\n", ":2: network a: replace is the process's"},
		"shared TUN":       {"tun-name: x\nnetworks: {a: {}}\n", ":1: tun-name: no two networks can have that in common"},
		"long name":        {"networks:\n  abcdefghijklm: {}\n", `:2: network "abcdefghijklm": a name has 1 to 12 characters`},
		"slash":            {"networks:\n  ../a: {}\n", `:2: network "../a": a name has`},
		"capital":          {"networks:\n  Blue: {}\n", `:2: network "Blue": a name has`},
		"empty name":       {"networks:\n  \"\": {}\n", `:2: network "": a name has`},
		"taken name":       {"networks:\n  subnets: {}\n", `:2: network "subnets": the name is taken`},
		"null value":       {"networks:\n  a:\n    iface:\n", ":3: network a: iface: it has no value"},
		"null in a list":   {"networks:\n  a:\n    iface:\n    - eth0\n    -\n", ":3: network a: iface: line 5: want a list of words"},
		"list of one":      {"networks:\n  a:\n    network: [10.1.0.0/16]\n", ":3: network a: network: want one value"},
		"map of one":       {"networks:\n  a:\n    network: {x: 1}\n", ":3: network a: network: want one value"},
		"no number":        {"networks:\n  a:\n    queues: many\n", `:3: network a: queues: invalid argument "many"`},
		"no bool":          {"networks:\n  a:\n    ip-masq: yes\n", `:3: network a: ip-masq: invalid argument "yes"`},
		"queues":           {"networks:\n\n  a:\n    queues: 99\n", ":3: network a: --queues 99: want 1 to 16"},
		"backend alone":    {"networks:\n  a:\n    backend: udp\n", ":2: network a: --backend describes the network that --network names"},
		"bad backend":      {"networks:\n  a:\n    network: 10.1.0.0/16\n    backend: {Type: vxlan, VNI: 99999999}\n", ":2: network a: the network's config from the flags"},
		"backend's keys":   {"networks:\n  a:\n    network: 10.1.0.0/16\n    backend: {Type: {1: x}}\n", ":4: network a: backend: as a map"},
		"two wrong":        {"networks:\n  a: {queues: 99, source-check: lax}\n", ":2: network a: --source-check"},
		"same TUN":         {two("tun-name: x", "tun-name: x"), ":3: network b and network a (networks.yaml:2): both have the TUN device x"},
		"TUN of IPv6":      {two("tun-name: abcdefghijkl", "tun-name: abcdefghijkl-v6"), "both have the TUN device abcdefghijkl-v6"},
		"same state":       {two("state-dir: /x", "state-dir: /x/"), "both have the state-dir /x"},
		"process's state":  {"networks:\n  a: {state-dir: /var/lib/muslin}\n", ":2: network a: state-dir /var/lib/muslin is the process's own"},
		"same socket":      {two("control: /x", "control: /x"), "both have the control /x"},
		"process's socket": {"networks:\n  a: {control: /run/muslin/muslin.sock}\n", "control /run/muslin/muslin.sock is the process's own"},
		"same file":        {two("subnet-file: /x", "subnet-file: /x"), "both have the subnet-file /x"},
		"same prefix":      {two("etcd-prefix: /x", "etcd-prefix: /x/"), "both are the network under /x/ of the same etcd"},
		"two etcds":        {"embedded-etcd: true\n" + two("", ""), "both run an etcd on port 2379"},
		"overlap":          {two("network: 10.1.0.0/16", `network: 10.0.0.0/8, backend: udp`), "their addresses overlap: 10.0.0.0/8 and 10.1.0.0/16"},
		"same VNI":         {two("network: 10.1.0.0/16", "network: 10.2.0.0/16"), "both are VNI 1 on UDP port 8472: give one another Backend.VNI"},
		"same port":        {two("network: 10.1.0.0/16, backend: {Type: vxlan, Port: 8285}", "network: 10.2.0.0/16, backend: udp"), "both want UDP port 8285"},
	} {
		_, err := networksOf(t, process(t), c.content)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
			continue
		}
		for line := range strings.Lines(err.Error()) {
			if !strings.HasPrefix(line, "networks.yaml:") {
				t.Errorf("%s: %q does not say where", name, line)
			}
		}
	}
	if _, err := networksOf(t, process(t), two("queues: 99", "queues: many")+"ifcae: x\n"); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two things wrong: %v", err)
	}
	// What only seems to clash.
	for _, good := range []string{
		two("network: 10.1.0.0/16", "network: 10.2.0.0/16, iface: eth1"),
		two("network: 10.1.0.0/16, backend: host-gw", "network: 10.2.0.0/16, backend: host-gw"),
		two("etcd-prefix: /x", "etcd-prefix: /x, etcd-endpoints: http://192.0.2.1:2379"),
	} {
		if _, err := networksOf(t, process(t), good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	all, err := networksOf(t, process(t), "iface: &x [eth0]\nnetworks: {a: {iface-regex: *x}}\n")
	if err != nil || all["a"].flags.ifaceRegex[0] != "eth0" {
		t.Errorf("an alias: %v", err)
	}
}

// Flags that name one network's things do not go with --config.
func TestNetworksFlags(t *testing.T) {
	for _, flag := range []string{"--tun-name=x", "--subnet-file=x", "--network=10.1.0.0/16", "--net-config-path=x", "--peers-file=x", "--wireguard-key-file=x"} {
		name, _, _ := strings.Cut(flag, "=")
		if err := process(t, flag).check(); err == nil || !strings.Contains(err.Error(), name+": with --config it belongs into the file") {
			t.Errorf("%s: %v", flag, err)
		}
	}
	if err := process(t, "--replace").check(); err == nil || !strings.Contains(err.Error(), "cannot take another one's place yet") {
		t.Errorf("--replace: %v", err)
	}
	if err := process(t, "--state-dir=x", "--control=x", "--iface=eth0", "--healthz-port=1").check(); err != nil {
		t.Error(err)
	}
}

// FuzzNetworksFile: whatever the file has, nothing panics, an error says where, and networks that are taken have nothing
// in common that they cannot have.
func FuzzNetworksFile(f *testing.F) {
	f.Add([]byte(goodNetworks))
	f.Add([]byte("{\"networks\": {\"a\": {\"iface\": [\"eth0\"]}, \"b\": null}}"))
	f.Add([]byte("iface: &x [eth0]\nnetworks: {a: {iface-regex: *x}, b: {backend: {Type: vxlan}, network: 10.1.0.0/16}}\n"))
	f.Add([]byte("networks:\n  a: {queues: 99}\n  a: {<<: {}}\n---\nx: y\n"))
	f.Add([]byte("? [networks]\n: {a: !!binary aGk=}\n"))
	f.Add([]byte("a: &a [*a]\nnetworks: *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := process(t)
		all, err := parseNetworks(p, data)
		if err == nil {
			for _, s := range all {
				if s.flags.netConfig != "" || s.flags.store.passwordFile != "" {
					return // it would be read
				}
			}
			err = checkNetworks(p, all)
		}
		if err != nil {
			if !strings.HasPrefix(err.Error(), "networks.yaml:") {
				t.Errorf("%q: %v", data, err)
			}
			return
		}
		if len(all) == 0 {
			t.Errorf("%q: no network, and no error", data)
		}
		seen := make(map[string]string)
		for _, s := range all {
			if !networkName.MatchString(s.name) {
				t.Errorf("%q: name %q", data, s.name)
			}
			for _, own := range []string{s.name, "tun " + s.flags.tunName, "tun " + s.opts.tunName6, filepath.Clean(s.flags.stateDir), filepath.Clean(s.flags.control), filepath.Clean(s.flags.subnetFile)} {
				if other := seen[own]; other != "" && other != s.name {
					t.Errorf("%q: %s and %s both have %s", data, other, s.name, own)
				}
				seen[own] = s.name
			}
			if !s.same(s) {
				t.Errorf("%q: network %s is not itself", data, s.name)
			}
		}
	})
}
