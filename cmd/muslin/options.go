package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
	"muslin/tunnel/pathmtu"
)

// Where things are unless a flag says otherwise.
const (
	defaultStateDir = "/var/lib/muslin"
	defaultControl  = "/run/muslin/muslin.sock"
	defaultTUN      = "muslin0"
	tunSuffix6      = "-v6" // as flannel's devices have it
)

// maxQueues is more than any machine gains from: the workers of a queue carry some ten Gb/s.
const maxQueues = 16

// leastPathMTU is the shortest --path-mtu-interval: a search takes a second or two.
const leastPathMTU = 5 * time.Second

// runFlags are the flags of "run" as given; options are what they mean.
type runFlags struct {
	config string // file with several networks; empty: the flags describe the one that there is
	store  storeFlags

	embedded     bool
	embeddedPort uint16
	network      string
	backend      string
	netConfig    string
	peersFile    string
	subnetFile   string
	renewMargin  int
	leaseTTL     time.Duration
	stateDir     string
	control      string
	tunName      string
	iface        []string
	ifaceRegex   []string
	canReach     string
	publicIP     string
	publicIPv6   string
	keyFile      string
	wireguard    string
	sourceCheck  string
	features     string
	queues       int
	pathMTU      time.Duration
	clampMSS     bool
	ipMasq       bool
	noRandom     bool
	resync       int
	forwardRules bool
	blackhole    bool
	peerAnswers  bool
	healthIP     string
	healthPort   int
	metrics      string
	metricsPeers int
	pprof        string
	web          string
	webToken     string
	replace      bool
	logLevel     string
	logFormat    string
}

func (r *runFlags) register(f *pflag.FlagSet) {
	f.StringVar(&r.config, "config", "", "run the networks that this `file` describes, in one process; the other flags count for all of them")
	r.store.register(f)
	f.BoolVar(&r.embedded, "embedded-etcd", false, "run an etcd server in this process, for networks that have none; data in the state directory")
	f.Uint16Var(&r.embeddedPort, "embedded-etcd-port", 2379, "`port` of the embedded etcd, on loopback and on the underlay interface")
	f.StringVar(&r.network, "network", "", "the overlay's `CIDR`: written as the network's config if the store has none")
	f.StringVar(&r.backend, "backend", "", "with --network: backend `type`, vxlan (the default), udp, host-gw or wireguard, or the config's whole Backend as JSON")
	f.StringVar(&r.netConfig, "net-config-path", "", "the network's config from a `file` instead of --network")
	f.StringVar(&r.peersFile, "peers-file", "", "take the leases from this `file` and use no etcd at all, for when the store is gone (muslin leases list --output peers-file)")

	f.StringArrayVar(&r.iface, "iface", nil, "underlay interface, by `name` or address; repeat for a list to choose from")
	f.StringArrayVar(&r.ifaceRegex, "iface-regex", nil, "`regexp` for the underlay interface's name or address; repeatable, tried after --iface")
	f.StringVar(&r.canReach, "iface-can-reach", "", "take the underlay interface that this `address` is reached through")
	f.StringVar(&r.publicIP, "public-ip", "", "`address` that other nodes reach this one at (default: the underlay interface's)")
	f.StringVar(&r.publicIPv6, "public-ipv6", "", "`address` that other nodes reach this one at over IPv6 (default: the underlay interface's)")

	f.StringVar(&r.subnetFile, "subnet-file", lease.DefaultSubnetFile, "`file` that tells container runtimes this node's subnet and MTU")
	f.IntVar(&r.renewMargin, "subnet-lease-renew-margin", 60, "renew the lease this many `minutes` before it expires, 1 to 1439")
	f.DurationVar(&r.leaseTTL, "subnet-lease-ttl", lease.TTL, "for tests: `how long` the lease lives without renewal; if it is not a day, it is renewed after half of that")
	f.Lookup("subnet-lease-ttl").Hidden = true
	f.StringVar(&r.stateDir, "state-dir", defaultStateDir, "`directory` for what must outlive the daemon: MAC, journal, embedded etcd")
	f.StringVar(&r.control, "control", defaultControl, "unix `socket` that muslin status asks")
	f.StringVar(&r.tunName, "tun-name", defaultTUN, "`name` of the TUN device")

	f.StringVar(&r.wireguard, "wireguard", wireguardAuto, "wireguard: `who` does it, the kernel where it has WireGuard (auto), the kernel or nobody (kernel), or this process (userspace)")
	f.StringVar(&r.keyFile, "wireguard-key-file", "", "`file` with this node's WireGuard key, made at the first start (default: wireguard-key in the state directory)")
	f.StringVar(&r.sourceCheck, "source-check", "strict", "how far the sender of a datagram is checked: strict, peers or off")
	f.StringVar(&r.features, "features", "auto", "which features of the kernel to use: auto or none, then -`NAME` to leave one out, NAME to take it in (muslin features lists them)")
	f.IntVar(&r.queues, "queues", 0, "`number` of queues, each with two workers; 0: by the number of processors")
	f.DurationVar(&r.pathMTU, "path-mtu-interval", pathmtu.DefaultInterval, "`how often` the path to a peer that takes smaller packets is tried again with larger ones, and five times as often whether one still takes the largest; 0: paths are not looked at")
	f.BoolVar(&r.clampMSS, "clamp-mss", false, "lower the MSS of TCP connections through the overlay to what fits, where ICMP errors do not get to the containers")
	f.BoolVar(&r.ipMasq, "ip-masq", false, "masquerade what leaves the overlay")
	f.BoolVar(&r.noRandom, "ip-masq-fully-random-disable", false, "do not randomise the ports of masqueraded connections fully")
	f.IntVar(&r.resync, "iptables-resync", int(host.DefaultResync/time.Second), "look after firewall rules and routes every this many `seconds`")
	f.BoolVar(&r.forwardRules, "iptables-forward-rules", true, "add rules that accept forwarding from and to the overlay")
	f.BoolVar(&r.blackhole, "ip-blackhole-route", false, "add a blackhole route for this node's subnet, under the pods' own routes")

	f.BoolVar(&r.peerAnswers, "peer-answers", true, "tell other nodes of the network, over the overlay, what muslin ping, trace and doctor ask there")
	f.StringVar(&r.healthIP, "healthz-ip", "127.0.0.1", "`address` for /healthz and /readyz")
	f.IntVar(&r.healthPort, "healthz-port", 0, "`port` for /healthz and /readyz; 0 is off")
	f.StringVar(&r.metrics, "metrics", "", "serve /metrics for Prometheus at this `address:port`, or on loopback at this port")
	f.IntVar(&r.metricsPeers, "metrics-peers", 100, "of `how many` peers, of each network, there are metrics of their own at most: those with the most traffic")
	f.StringVar(&r.pprof, "pprof", pprofOff, "serve profiles of the process, for go tool pprof, beside /metrics, to `whom`: loopback or any")
	f.Lookup("pprof").NoOptDefVal = pprofLoopback
	f.StringVar(&r.web, "web", "", "show this node and its peers in a browser, at this `address:port`, or on loopback at this port")
	f.StringVar(&r.webToken, "web-token-file", "", "`file` with the token that the page of --web asks for, made at the first start; needed where others than this host reach it")
	f.BoolVar(&r.replace, "replace", false, "take the place of the daemon that runs with the same flags, without a lost packet; if that fails, it goes on")
	f.StringVar(&r.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&r.logFormat, "log-format", "text", "text or json")
}

// options are runFlags after they were checked.
type options struct {
	flags *runFlags

	iface       host.InterfaceOptions
	sourceCheck tunnel.SourceCheck
	features    kernel.Features // wanted
	renewMargin time.Duration
	resync      time.Duration
	endpoints   endpointOptions
	tunName6    string // of the TUN device of IPv6
	wantConfig  []byte // to be written if the store has none; nil: nothing given
	log         *slog.Logger
}

// options checks every flag and reports all that is wrong at once.
func (r *runFlags) options(logTo io.Writer) (*options, error) {
	log, err := newLogger(logTo, r.logLevel, r.logFormat)
	o, bad := r.check(log)
	return o, errors.Join(err, bad)
}

// check is options with a logger, or with none.
func (r *runFlags) check(log *slog.Logger) (*options, error) {
	var bad []error
	o := &options{flags: r, log: log}
	check := func(err error) {
		if err != nil {
			bad = append(bad, err)
		}
	}
	var err error
	if o.log != nil {
		check(r.store.takePassword(o.log))
	}
	o.sourceCheck, err = tunnel.ParseSourceCheck(r.sourceCheck)
	if err != nil {
		check(fmt.Errorf("--source-check: %w", err))
	}
	o.features, err = kernel.ParseFeatures(r.features)
	check(err)
	if !slices.Contains([]string{wireguardAuto, wireguardKernel, wireguardUserspace}, r.wireguard) {
		check(fmt.Errorf("--wireguard %q: want auto, kernel or userspace", r.wireguard))
	}
	if r.queues < 0 || r.queues > maxQueues {
		check(fmt.Errorf("--queues %d: want 1 to %d, or 0 to choose by the number of processors", r.queues, maxQueues))
	}
	if r.pathMTU != 0 && r.pathMTU < leastPathMTU {
		check(fmt.Errorf("--path-mtu-interval %v: want %v at least, or 0 for never", r.pathMTU, leastPathMTU))
	}
	o.iface = host.InterfaceOptions{Iface: r.iface, IfaceRegex: r.ifaceRegex}
	o.iface.CanReach, err = optionalIPv4("--iface-can-reach", r.canReach)
	check(err)
	o.iface.PublicIP, err = optionalIPv4("--public-ip", r.publicIP)
	check(err)
	o.iface.PublicIPv6, err = optionalIPv6(r.publicIPv6)
	check(err)
	if r.renewMargin < 1 || r.renewMargin > 1439 {
		check(fmt.Errorf("--subnet-lease-renew-margin %d: want 1 to 1439 minutes, as a lease lasts 1440", r.renewMargin))
	}
	o.renewMargin = time.Duration(r.renewMargin) * time.Minute
	if r.leaseTTL < 2*time.Second || r.leaseTTL > lease.TTL {
		check(fmt.Errorf("--subnet-lease-ttl %v: want 2s to %v", r.leaseTTL, lease.TTL))
	}
	if r.leaseTTL != lease.TTL {
		o.renewMargin = r.leaseTTL / 2
	}
	if r.resync < 1 {
		check(fmt.Errorf("--iptables-resync %d: want at least 1 second", r.resync))
	}
	o.resync = time.Duration(r.resync) * time.Second
	if n := r.tunName + tunSuffix6; len(n) > 15 && len(r.tunName) <= 15 {
		o.tunName6 = r.tunName[:15-len(tunSuffix6)] + tunSuffix6
	} else {
		o.tunName6 = n
	}
	if n := r.tunName; n == "" || len(n) > 15 || n == "." || n == ".." || strings.ContainsAny(n, "/: \t%") {
		check(fmt.Errorf("--tun-name %q: an interface name has 1 to 15 characters, none of them a slash, a colon, a space or a percent sign", n))
	}
	if r.embeddedPort == 0 {
		check(errors.New("--embedded-etcd-port 0: want 1 to 65535"))
	}
	o.endpoints, err = r.endpointOptions()
	check(err)
	o.wantConfig, err = r.wantedConfig()
	check(err)
	check(r.contradictions())
	return o, errors.Join(bad...)
}

// healthAddr is where /healthz is answered; port zero: nowhere.
func (r *runFlags) healthAddr() (netip.AddrPort, error) {
	var bad []error
	if r.healthPort < 0 || r.healthPort > 65535 {
		bad = append(bad, fmt.Errorf("--healthz-port %d: want 0 (off) to 65535", r.healthPort))
	}
	ip, err := netip.ParseAddr(r.healthIP)
	if err != nil {
		bad = append(bad, fmt.Errorf("--healthz-ip %q: not an address", r.healthIP))
	}
	return netip.AddrPortFrom(ip, uint16(r.healthPort)), errors.Join(bad...)
}

// contradictions finds flags that exclude or need each other.
func (r *runFlags) contradictions() error {
	switch {
	case r.peersFile != "" && r.embedded:
		return errors.New("--peers-file means no etcd at all: leave --embedded-etcd out")
	case r.peersFile != "" && r.network == "" && r.netConfig == "":
		return errors.New("--peers-file needs the network's config as well: give --network (and --backend), or --net-config-path")
	case r.network != "" && r.netConfig != "":
		return errors.New("--network and --net-config-path both give the network's config: leave one out")
	case r.backend != "" && r.network == "":
		return errors.New("--backend describes the network that --network names: give both")
	}
	return nil
}

// wantedConfig is the network's config that the flags describe, or nil when they describe none.
func (r *runFlags) wantedConfig() ([]byte, error) {
	var raw []byte
	switch {
	case r.netConfig != "":
		var err error
		if raw, err = os.ReadFile(r.netConfig); err != nil {
			return nil, fmt.Errorf("--net-config-path: %w", err)
		}
	case r.network != "":
		backend, err := backendJSON(r.backend)
		if err != nil {
			return nil, err
		}
		raw, err = json.Marshal(map[string]any{"Network": r.network, "Backend": backend})
		if err != nil {
			return nil, fmt.Errorf("--backend: %w", err)
		}
	default:
		return nil, nil
	}
	if _, err := lease.ParseConfig(raw); err != nil {
		return nil, fmt.Errorf("the network's config from the flags: %w", err)
	}
	return raw, nil
}

func backendJSON(s string) (json.RawMessage, error) {
	switch {
	case s == "":
		return json.RawMessage(`{"Type":"vxlan"}`), nil
	case strings.HasPrefix(strings.TrimSpace(s), "{"):
		if !json.Valid([]byte(s)) {
			return nil, fmt.Errorf("--backend %s: not valid JSON", s)
		}
		return json.RawMessage(s), nil
	}
	return json.Marshal(map[string]string{"Type": s})
}

// optionalIPv6 reads --public-ipv6.
func optionalIPv6(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is6() || a.Is4In6() || a.IsLinkLocalUnicast() {
		return netip.Addr{}, fmt.Errorf("--public-ipv6 %q: not an IPv6 address that names a host beyond its link", s)
	}
	return a, nil
}

func optionalIPv4(flag, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return netip.Addr{}, fmt.Errorf("%s %q: not an IPv4 address", flag, s)
	}
	return a, nil
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", format)
}
