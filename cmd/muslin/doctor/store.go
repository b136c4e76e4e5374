package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"muslin/lease"
	"muslin/lease/etcd"
)

var storeChecks = []Check{
	{Name: "store", Essential: true, Run: checkStore},
	{Name: "store-rights", Needs: NeedStore, Run: checkStoreRights},
	{Name: "network-config", Needs: NeedStore, Run: checkNetworkConfig},
	{Name: "clock", Needs: NeedStore, Run: checkClock},
}

// unstarted are the findings that a store explains which a daemon cannot start without.
var unstarted = []string{"daemon-stopped", "daemon-waiting"}

// checkStore is about a store that cannot be had.
func checkStore(ctx context.Context, p *Patient) []Finding {
	err := p.Store.Err
	switch {
	case err == nil:
		return nil
	case p.Status != nil && p.Status.Store.Healthy && p.Daemon.Blind != "":
		p.CannotTell("store", fmt.Errorf("the daemon reaches it, and this command does not know how: %s", p.Daemon.Blind))
		return nil
	case p.Running() && p.Daemon.Blind != "" && p.Status.Store.LastError != "":
		return p.byItsWord()
	case p.Options.Guessed && errors.Is(err, lease.ErrUnavailable):
		p.CannotTell("store", fmt.Errorf("it is not known where etcd is: give --etcd-endpoints, as for the daemon; %w", err))
		return nil
	case p.Store.Kind == "peers-file":
		f := broken("peers-file-unreadable", "the peers file cannot be read: peers stay as they were, and the daemon cannot start again", err.Error(), "muslin leases list --output peers-file > "+plain(p.Options.PeersFile)+" # or mend the file")
		f.Explains = unstarted
		return []Finding{f}
	}
	var f Finding
	switch {
	case errors.Is(err, etcd.ErrTLS):
		f = p.explainTLS(ctx, err)
	case errors.Is(err, lease.ErrDenied):
		f = broken("etcd-permission", "etcd refuses this node's user: no lease can be taken or renewed", err.Error(), p.mendDenied(err))
	case errors.Is(err, lease.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		f = broken("etcd-unreachable", "etcd does not answer: nobody hears of new nodes, and no lease is renewed or taken", err.Error(), p.mendUnreachable(err))
		p.blameOwnRules(ctx, &f)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		f = broken("etcd-certificate", "a file for TLS with etcd cannot be read", err.Error(), "ls -l "+strings.Join(p.tlsFiles(), " "))
	case slices.ContainsFunc(p.tlsFiles(), func(file string) bool { return strings.Contains(err.Error(), file) }):
		f = broken("etcd-certificate", "the files for TLS with etcd are of no use", err.Error(), fmt.Sprintf("openssl x509 -in %s -noout -subject -dates -pubkey; openssl pkey -in %s -pubout # which must be the same key",
			plain(p.Options.Store.CertFile), plain(p.Options.Store.KeyFile)))
	default: // of the flags
		f = broken("etcd-settings", "this node's settings for etcd are wrong", err.Error(), "muslin run --help")
	}
	f.Explains = append([]string{"lease-*"}, unstarted...)
	return []Finding{f}
}

// byItsWord is about a store of which only the daemon knows how it is reached, and what it says of that, which is text.
func (p *Patient) byItsWord() []Finding {
	text := p.Status.Store.LastError
	f := broken("etcd-unreachable", "the daemon does not get at etcd: nobody hears of new nodes, and no lease is renewed or taken", text, "muslin doctor --etcd-password-file FILE # with the daemon's, which cannot be seen from here, to learn more")
	switch {
	case strings.Contains(text, lease.ErrDenied.Error()):
		f.ID, f.Summary, f.Fix = "etcd-permission", "etcd refuses this node's user: no lease can be taken or renewed", p.mendDenied(errors.New(text))
	case strings.Contains(text, etcd.ErrTLS.Error()):
		f.ID, f.Summary = "etcd-certificate", "TLS with etcd fails: nobody hears of new nodes, and no lease is renewed or taken"
	}
	f.Confidence, f.Explains = Likely, append([]string{"lease-*"}, unstarted...)
	return []Finding{f}
}

// blameOwnRules looks for rules of this host's own firewall that may keep it from etcd.
func (p *Patient) blameOwnRules(ctx context.Context, f *Finding) {
	for _, e := range p.Store.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			continue
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			continue
		}
		if rules := rulesNaming(ctx, "output", "OUTPUT", uint16(port)); len(rules) > 0 {
			f.Summary = "a firewall rule of this host keeps it from etcd: nobody hears of new nodes, and no lease is renewed or taken"
			f.Confidence = Likely
			f.blame(rules)
			return
		}
	}
}

// tlsFiles are those that are given.
func (p *Patient) tlsFiles() []string {
	var all []string
	for _, f := range []string{p.Options.Store.CAFile, p.Options.Store.CertFile, p.Options.Store.KeyFile} {
		if f != "" {
			all = append(all, f)
		}
	}
	return all
}

// mendUnreachable says where to start etcd, or which way to open.
func (p *Patient) mendUnreachable(err error) string {
	var hosts, ports []string
	own := false
	for _, e := range p.Store.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			continue
		}
		a := address(u.Hostname())
		own = own || a.IsLoopback() || p.ownAddress(a)
		hosts, ports = append(hosts, u.Hostname()), append(ports, u.Port())
	}
	text := err.Error()
	switch {
	case len(hosts) == 0:
		return "give --etcd-endpoints"
	case strings.Contains(text, "has reached its quota"), strings.Contains(text, "no leader"):
		return p.etcdctl() + " endpoint status --cluster -w table"
	case own && p.Options.Embedded:
		return "systemctl restart muslin # its etcd is embedded"
	case own:
		return "systemctl start etcd # or give the right --etcd-endpoints"
	case strings.Contains(text, "refused"):
		return fmt.Sprintf("ssh %s systemctl start etcd # start etcd on %s, or give the right --etcd-endpoints", hosts[0], strings.Join(hosts, ", "))
	}
	if strings.Contains(text, "lookup ") {
		return fmt.Sprintf("getent hosts %s # and mend the name's resolution (/etc/resolv.conf, /etc/hosts), or give the right --etcd-endpoints", hosts[0])
	}
	if strings.Contains(text, "the store does not answer") { // but takes a connection
		return p.etcdctl() + " endpoint health # it takes connections and does not answer: it hangs, is overloaded or without a quorum, or is no etcd"
	}
	if strings.Contains(text, "network is unreachable") || strings.Contains(text, "no route to host") {
		return fmt.Sprintf("ip route get %s # and add the route that is missing, or give the right --etcd-endpoints", hosts[0])
	}
	return fmt.Sprintf("nc -vz %s %s # and open that way, or give the right --etcd-endpoints", hosts[0], ports[0])
}

func (p *Patient) mendDenied(err error) string {
	user := p.Options.Store.Username
	switch {
	case user == "":
		return "give --etcd-username and --etcd-password-file"
	case strings.Contains(err.Error(), "wrong user name or password"):
		return p.etcdctl() + " --user=root user passwd " + user + " # or give the right --etcd-username and --etcd-password-file"
	}
	return p.mendRights()
}

// mendRights grants what docs/etcd.md says.
func (p *Patient) mendRights() string {
	return fmt.Sprintf("c=\"%s --user=root\"; $c role add muslin; $c role grant-permission muslin read %s/config; $c role grant-permission muslin readwrite --prefix=true %[2]s/subnets; $c user grant-role %[3]s muslin",
		p.etcdctl(), p.prefix(), p.Options.Store.Username)
}

// etcdctl is the command, told where etcd is.
func (p *Patient) etcdctl() string {
	command := "etcdctl --endpoints=" + plain(strings.Join(p.Store.Endpoints, ","))
	c := &p.Options.Store
	for _, f := range [][2]string{{"cacert", c.CAFile}, {"cert", c.CertFile}, {"key", c.KeyFile}} {
		if f[1] != "" {
			command += fmt.Sprintf(" --%s=%s", f[0], plain(f[1]))
		}
	}
	return command
}

// mendFull makes room, as etcd's documentation has it.
func (p *Patient) mendFull() string {
	return fmt.Sprintf(`c="%s"; $c compact $($c endpoint status -w fields | sed -n 's/^"Revision" : //p' | head -n 1); $c defrag --cluster; $c alarm disarm # and see what fills it, or raise its --quota-backend-bytes`, p.etcdctl())
}

// prefix is etcd's for the network.
func (p *Patient) prefix() string {
	if p.Options.Store.Prefix == "" {
		return etcd.DefaultPrefix
	}
	return p.Options.Store.Prefix
}

// skewLimit is a difference between two clocks that no delay on the way explains.
const skewLimit = 5 * time.Minute

// explainTLS tells a certificate that is wrong from a clock that is.
func (p *Patient) explainTLS(ctx context.Context, err error) Finding {
	what, fix := p.mendTLS(err)
	f := broken("etcd-certificate", what+": nobody hears of new nodes, and no lease is renewed or taken", err.Error(), fix)
	now := time.Now()
	certs, clock := p.lookAtServer(ctx)
	certs = append(certs, p.ownCertificate()...)
	skew := clock.Sub(now)
	for _, c := range certs {
		name := fmt.Sprintf("the certificate of %s is good from %s to %s, and this host's clock says %s", c.Subject.CommonName, stamp(c.NotBefore), stamp(c.NotAfter), stamp(now))
		switch {
		case now.After(c.NotBefore) && now.Before(c.NotAfter):
			continue
		case !clock.IsZero() && skew.Abs() > skewLimit && clock.After(c.NotBefore) && clock.Before(c.NotAfter):
			f.ID, f.Summary = "clock-skew", "this host's clock is wrong, so that certificates which are good are refused"
			f.Evidence = fmt.Sprintf("%s; etcd's says %s; %v", name, stamp(clock), err)
			f.Fix = mendClock
		case now.Before(c.NotBefore):
			f.ID, f.Summary, f.Confidence = "clock-skew", "a certificate is not good yet: this host's clock is behind, or that of the host that made it is ahead", Likely
			f.Evidence, f.Fix = fmt.Sprintf("%s; %v", name, err), mendClock
		default:
			f.Summary = "a certificate has expired: TLS with etcd fails, and no lease is renewed or taken"
			f.Evidence = fmt.Sprintf("%s; %v", name, err)
			f.Fix = "renew the certificate of " + c.Subject.CommonName + "; neither etcd nor muslin needs a restart to read it"
		}
		break
	}
	return f
}

const mendClock = "chronyc makestep || systemctl restart systemd-timesyncd # then compare date on both hosts"

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// mendTLS says what is wrong and what to do, by the reason that an etcd.Store gives.
func (p *Patient) mendTLS(err error) (what, fix string) {
	text := err.Error()
	switch {
	case strings.Contains(text, "authority that is not trusted"):
		return "etcd's certificate is signed by a CA that this node does not trust", "give the CA that signed etcd's certificate with --etcd-cafile"
	case strings.Contains(text, "refuses our certificate"):
		return "etcd refuses this node's certificate", "give a certificate that etcd's --trusted-ca-file has signed, with --etcd-certfile and --etcd-keyfile"
	case strings.Contains(text, "does not speak TLS"):
		return "etcd speaks no TLS, and is asked with it", "give --etcd-endpoints with http://"
	case strings.Contains(text, "speaks TLS"):
		return "etcd speaks TLS, and is asked without", "give --etcd-endpoints with https://, and --etcd-cafile"
	}
	host := "HOST:PORT"
	if len(p.Store.Endpoints) > 0 {
		if u, err := url.Parse(p.Store.Endpoints[0]); err == nil {
			host = u.Host
		}
	}
	what = "TLS with etcd fails"
	if strings.Contains(text, "use a name that its certificate has") {
		what = "etcd's certificate is for another name or address than it is asked under"
	}
	return what, fmt.Sprintf("openssl s_client -connect %s </dev/null | openssl x509 -noout -text # then give --etcd-endpoints a name that it has", host)
}

// lookAtServer is the certificate that the first server shows, whatever it is worth, and what its clock says, by the
// header Date; zero: it does not.
func (p *Patient) lookAtServer(ctx context.Context) (certs []*x509.Certificate, clock time.Time) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, e := range p.Store.Endpoints {
		cfg := &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error { // to look, not to trust
			if len(s.PeerCertificates) > 0 {
				certs = append(certs, s.PeerCertificates[0])
			}
			return nil
		}}
		if pair, err := tls.LoadX509KeyPair(p.Options.Store.CertFile, p.Options.Store.KeyFile); err == nil {
			cfg.Certificates = []tls.Certificate{pair}
		}
		if clock = serverClock(ctx, e, cfg); !clock.IsZero() || len(certs) > 0 {
			break
		}
	}
	return certs, clock
}

// serverClock asks a server for its time, by HTTP; zero: it does not say.
func serverClock(ctx context.Context, endpoint string, cfg *tls.Config) time.Time {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true, DialContext: new(net.Dialer).DialContext}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/version", nil)
	if err != nil {
		return time.Time{}
	}
	resp, err := client.Do(req)
	if err != nil {
		return time.Time{}
	}
	resp.Body.Close()
	t, _ := http.ParseTime(resp.Header.Get("Date"))
	return t
}

// ownCertificate is this node's; none: it has none that can be read.
func (p *Patient) ownCertificate() []*x509.Certificate {
	pair, err := tls.LoadX509KeyPair(p.Options.Store.CertFile, p.Options.Store.KeyFile)
	if err != nil {
		return nil
	}
	c, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil
	}
	return []*x509.Certificate{c}
}

// checkClock compares this host's clock with etcd's where TLS hangs on it.
func checkClock(ctx context.Context, p *Patient) []Finding {
	if p.Store.Kind != "etcd" || len(p.Store.Endpoints) == 0 || !strings.HasPrefix(p.Store.Endpoints[0], "https://") {
		return nil
	}
	before := time.Now()
	_, clock := p.lookAtServer(ctx)
	if clock.IsZero() || clock.Sub(before).Abs() <= skewLimit {
		return nil
	}
	return []Finding{{
		ID: "clock-skew", Severity: Warning, Confidence: Certain, Fix: mendClock,
		Summary:  "this host's clock and etcd's differ: certificates will be refused that are good, or taken that are not",
		Evidence: fmt.Sprintf("this host's says %s, etcd's %s", stamp(before), stamp(clock)),
	}}
}

// checkStoreRights is about a user that may read and not write, and an etcd that is full. A transaction is refused for
// what it might write, and this one writes nothing.
func checkStoreRights(ctx context.Context, p *Patient) []Finding {
	if p.Store.Kind != "etcd" {
		return nil
	}
	key := p.ownKey()
	if key == "" {
		key = lease.Key(netip.MustParsePrefix("192.0.2.0/24"))
	}
	cfg := p.Options.Store
	cfg.Timeout = askTime
	store, err := etcd.Dial(cfg)
	if err == nil {
		defer store.Close()
		err = store.CheckWritable(ctx, key)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, lease.ErrDenied):
		f := broken("etcd-permission", "etcd lets this node's user read, but not write: no lease can be taken or renewed", err.Error(), p.mendRights())
		f.Explains = append([]string{"lease-*"}, unstarted...)
		return []Finding{f}
	case errors.Is(err, etcd.ErrFull):
		f := broken("etcd-full", "etcd's database is full: it can be read and not written, so that no lease can be taken or renewed", err.Error(), p.mendFull())
		f.Explains = append([]string{"lease-*", "embedded-etcd"}, unstarted...)
		return []Finding{f}
	}
	p.CannotTell("store-rights", err)
	return nil
}

// checkNetworkConfig is about a network without a config, or with one that no daemon can start with.
func checkNetworkConfig(_ context.Context, p *Patient) []Finding {
	s := &p.Store
	if s.ConfigErr == nil || s.Kind == "peers-file" {
		return nil
	}
	key := p.prefix() + "/config"
	f := broken("network-config", "the network's config in etcd is wrong: no daemon can start", fmt.Sprintf("%s: %v", key, s.ConfigErr), "muslin config set FILE # with one that muslin config validate takes")
	if errors.Is(s.ConfigErr, lease.ErrNoConfig) {
		f.Summary = "there is no network config in etcd: no daemon can start"
		f.Fix = `muslin config set '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}' # with the network's own; or give another --etcd-prefix than ` + p.prefix()
	}
	if p.Running() {
		f.Summary = strings.Replace(f.Summary, "no daemon can start", "what runs goes on, and no daemon can start", 1)
		f.Severity = Warning
	}
	f.Explains = append([]string{"lease-*"}, unstarted...)
	return []Finding{f}
}
