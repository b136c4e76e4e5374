package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"muslin/tunnel"
	"muslin/tunnel/kernel"
)

// parse reads a command line of "run" as cobra would, with an environment.
func parse(t *testing.T, env map[string]string, args ...string) (*options, error) {
	t.Helper()
	var flags runFlags
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	flags.register(fs)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	err := flagsFromEnv(fs, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
	if err != nil {
		return nil, err
	}
	return flags.options(io.Discard)
}

func TestOptionsDefaults(t *testing.T) {
	o, err := parse(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o.sourceCheck != tunnel.SourceCheckStrict || o.renewMargin != time.Hour || o.endpoints.health.Port() != 0 || o.wantConfig != nil {
		t.Errorf("defaults: %+v", o)
	}
	if got := strings.Join(o.flags.store.list(), " "); got != "http://127.0.0.1:4001 http://127.0.0.1:2379" {
		t.Errorf("endpoints %q", got)
	}
}

// A lease made short for a test is renewed at half of its life; one of a day as the margin says.
func TestLeaseLife(t *testing.T) {
	for args, want := range map[string]time.Duration{
		"--subnet-lease-ttl=10s":                                5 * time.Second,
		"--subnet-lease-renew-margin=30":                        30 * time.Minute,
		"--subnet-lease-ttl=24h --subnet-lease-renew-margin=30": 30 * time.Minute,
	} {
		o, err := parse(t, nil, strings.Fields(args)...)
		if err != nil || o.renewMargin != want {
			t.Errorf("%s: %+v, %v; want a margin of %v", args, o, err, want)
		}
	}
}

func TestOptionsRefusals(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "net.json")
	if err := os.WriteFile(bad, []byte(`{"Network":"10.244.0.0/16"`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args string
		want string
	}{
		{"source check", "--source-check=lax", "--source-check"},
		{"feature", "--features=-udp-gso,fast", `"fast": want auto or none first`},
		{"features none late", "--features=-udp-gso,none", `"none": want auto or none first`},
		{"features empty", "--features=", "of mmsg, source-ports"},
		{"queues below", "--queues=-1", "1 to 16"},
		{"queues above", "--queues=17", "1 to 16"},
		{"public ip", "--public-ip=host", `--public-ip "host"`},
		{"public ip IPv6", "--public-ip=2001:db8::1", "not an IPv4 address"},
		{"public ipv6", "--public-ipv6=fe80::1", "not an IPv6 address"},
		{"margin too small", "--subnet-lease-renew-margin=0", "1 to 1439"},
		{"margin too large", "--subnet-lease-renew-margin=1440", "1 to 1439"},
		{"lease life too short", "--subnet-lease-ttl=1s", "2s to 24h"},
		{"lease life too long", "--subnet-lease-ttl=25h", "2s to 24h"},
		{"resync", "--iptables-resync=0", "--iptables-resync"},
		{"TUN name long", "--tun-name=sixteencharacter", "1 to 15 characters"},
		{"TUN name empty", "--tun-name=", "1 to 15 characters"},
		{"health port", "--healthz-port=70000", "--healthz-port"},
		{"health address", "--healthz-ip=localhost", "--healthz-ip"},
		{"metrics name", "--metrics=localhost:9469", `--metrics "localhost:9469": want a port (on 127.0.0.1), or an address and a port`},
		{"metrics port", "--metrics=127.0.0.1:0", "--metrics"},
		{"metrics beyond", "--metrics=99999", "--metrics"},
		{"metrics on health's port", "--metrics=0.0.0.0:9000 --healthz-port=9000", "--metrics 0.0.0.0:9000 and --healthz-ip 127.0.0.1 have the same port"},
		{"metrics of peers", "--metrics=9469 --metrics-peers=-1", "--metrics-peers -1"},
		{"profiles", "--metrics=9469 --pprof=everybody", "--pprof=everybody: want off, loopback or any"},
		{"profiles alone", "--pprof", "give --metrics as well"},
		{"page", "--web=example.com:80", `--web "example.com:80": example.com is no address`},
		{"page for all without a token", "--web=0.0.0.0:9000", "give --web-token-file FILE as well"},
		{"token without a page", "--web-token-file=/tmp/token", "give both, or leave it out"},
		{"page on health's port", "--web=9000 --healthz-port=9000", "--web 127.0.0.1:9000: /healthz or metrics are answered there"},
		{"log level", "--log-level=loud", "--log-level"},
		{"log format", "--log-format=xml", "--log-format"},
		{"network", "--network=10.244.0.5/16", "10.244.0.0/16"},
		{"network IPv6", "--network=2001:db8::/32", "Network"},
		{"backend", "--network=10.244.0.0/16 --backend={", "not valid JSON"},
		{"backend field", `--network=10.244.0.0/16 --backend={"Type":"vxlan","VNI":16777216}`, "VNI"},
		{"backend alone", "--backend=udp", "give both"},
		{"config file missing", "--net-config-path=/nonexistent/net.json", "--net-config-path"},
		{"config file broken", "--net-config-path=" + bad, "config"},
		{"two configs", "--network=10.244.0.0/16 --net-config-path=" + bad, "leave one out"},
		{"peers file and etcd", "--network=10.244.0.0/16 --peers-file=p --embedded-etcd", "no etcd at all"},
		{"peers file alone", "--peers-file=p", "--network"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(t, nil, strings.Fields(c.args)...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestOptionsFeatures(t *testing.T) {
	for _, c := range []struct {
		name string
		env  map[string]string
		args []string
		on   []string
		off  []string
	}{
		{"default", nil, nil, kernel.FeatureNames(), nil},
		{"none", nil, []string{"--features=none"}, nil, kernel.FeatureNames()},
		{"one left out, and what needs it", nil, []string{"--features=-tun-tso"},
			[]string{kernel.TUNVnet, kernel.TUNTCPGRO, kernel.UDPGSO}, []string{kernel.TUNTSO, kernel.TUNUSO}},
		{"one alone, and what it needs", nil, []string{"--features=none,tun-tcp-gro"},
			[]string{kernel.TUNTCPGRO, kernel.TUNVnet, kernel.TUNDrain}, []string{kernel.TUNTSO, kernel.MMsg, kernel.TUNNAPI}},
		{"variable", map[string]string{"MUSLIN_FEATURES": "-udp-gso,-udp-gro"}, nil,
			[]string{kernel.MMsg, kernel.TUNVnet}, []string{kernel.UDPGSO, kernel.UDPGRO}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := parse(t, c.env, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range c.on {
				if !o.features.On(name) {
					t.Errorf("%s is off: %s", name, o.features.Why(name))
				}
			}
			for _, name := range c.off {
				if o.features.On(name) {
					t.Errorf("%s is on", name)
				}
			}
		})
	}
}

func TestOptionsQueues(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want int // 0: by the number of processors
	}{
		{"default", nil, 0},
		{"automatic", []string{"--queues=0"}, 0},
		{"one", []string{"--queues=1"}, 1},
		{"most", []string{"--queues=16"}, 16},
		{"without multi-queue", []string{"--queues=4", "--features=-multi-queue"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := parse(t, nil, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			got, err := newDaemon(o).queueCount(o.features, new(node))
			if err != nil {
				t.Fatal(err)
			}
			if c.want == 0 {
				if got < 1 || got > 8 {
					t.Errorf("%d queues, want 1 to 8", got)
				}
			} else if got != c.want {
				t.Errorf("%d queues, want %d", got, c.want)
			}
		})
	}
}

// All that is wrong is said at once.
func TestOptionsReportsAll(t *testing.T) {
	_, err := parse(t, nil, "--source-check=lax", "--tun-name=", "--public-ip=x")
	for _, want := range []string{"--source-check", "--tun-name", "--public-ip"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not speak of %s", err, want)
		}
	}
}

func TestFlagsFromEnv(t *testing.T) {
	for _, c := range []struct {
		name string
		env  map[string]string
		args []string
		want string // of --etcd-endpoints
	}{
		{"ours", map[string]string{"MUSLIN_ETCD_ENDPOINTS": "http://a:1"}, nil, "http://a:1"},
		{"flannel's", map[string]string{"FLANNELD_ETCD_ENDPOINTS": "http://b:1"}, nil, "http://b:1"},
		{"ours over flannel's", map[string]string{"MUSLIN_ETCD_ENDPOINTS": "http://a:1", "FLANNELD_ETCD_ENDPOINTS": "http://b:1"}, nil, "http://a:1"},
		{"empty is not set", map[string]string{"MUSLIN_ETCD_ENDPOINTS": "", "FLANNELD_ETCD_ENDPOINTS": "http://b:1"}, nil, "http://b:1"},
		{"flag over both", map[string]string{"MUSLIN_ETCD_ENDPOINTS": "http://a:1"}, []string{"--etcd-endpoints=http://c:1"}, "http://c:1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := parse(t, c.env, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			if got := o.flags.store.endpoints; got != c.want {
				t.Errorf("endpoints %q, want %q", got, c.want)
			}
		})
	}
	t.Run("list", func(t *testing.T) {
		o, err := parse(t, map[string]string{"MUSLIN_IFACE": "eth1,eth0"})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(o.iface.Iface, " "); got != "eth1 eth0" {
			t.Errorf("interfaces %q", got)
		}
	})
	t.Run("bad value names the variable", func(t *testing.T) {
		_, err := parse(t, map[string]string{"FLANNELD_IP_MASQ": "perhaps"})
		if err == nil || !strings.Contains(err.Error(), "FLANNELD_IP_MASQ") {
			t.Errorf("error %v", err)
		}
	})
}
