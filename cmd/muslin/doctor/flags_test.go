package doctor

import (
	"slices"
	"testing"

	"muslin/lease"
	"muslin/lease/etcd"
)

// A command that asks etcd by itself gets the flags by which it is reached; what is none, and the defaults, stay.
func TestFixWithFlags(t *testing.T) {
	p := &Patient{}
	p.Store.Kind = "etcd"
	const release = "muslin leases release 'junk' # or: muslin config get"
	for _, c := range []struct {
		cfg  etcd.Config
		fix  string
		want string
	}{
		{etcd.Config{Endpoints: etcd.DefaultEndpoints(), Prefix: etcd.DefaultPrefix}, release, release},
		{etcd.Config{Endpoints: []string{"https://192.0.2.1:2379", "https://192.0.2.2:2379"}, CAFile: "/etc/a ca.pem"}, release,
			"muslin leases release --etcd-endpoints=https://192.0.2.1:2379,https://192.0.2.2:2379 --etcd-cafile='/etc/a ca.pem' 'junk' # or: muslin config get --etcd-endpoints=https://192.0.2.1:2379,https://192.0.2.2:2379 --etcd-cafile='/etc/a ca.pem'"},
		{etcd.Config{Endpoints: []string{"http://[2001:db8::1]:2379"}, Prefix: "/o'clock", Username: "me"}, "muslin config set FILE",
			`muslin config set --etcd-endpoints='http://[2001:db8::1]:2379' --etcd-prefix='/o'\''clock' --etcd-username=me FILE`},
		{etcd.Config{Endpoints: []string{"http://192.0.2.1:2379"}}, "systemctl restart muslin # see muslin config validate", "systemctl restart muslin # see muslin config validate"},
	} {
		p.Options.Store = c.cfg
		if got := p.withFlags(c.fix); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
	p.Store.Kind = "peers-file"
	if got := p.withFlags(release); got != release {
		t.Errorf("with a peers file: %s", got)
	}
}

// What the daemon warns of is left out where a check has found the cause, and only there.
func TestWithoutDoubles(t *testing.T) {
	warned := Finding{ID: "lease-not-renewed", Node: "a", unless: aboutStore}
	for _, c := range []struct {
		other Finding
		want  int
	}{
		{Finding{ID: "etcd-full", Node: "a"}, 1},
		{Finding{ID: "lease-expired", Node: "b"}, 1},
		{Finding{ID: "ip-forward", Node: "a"}, 2},
		{Finding{ID: "public-ip-duplicate", Node: "b"}, 2}, // of another node
		{Finding{ID: "lease-not-renewed", Node: "b", unless: aboutStore}, 2},
	} {
		all := []Finding{warned, c.other}
		if got := withoutDoubles(all); len(got) != c.want || !slices.ContainsFunc(got, func(f Finding) bool { return f.ID == c.other.ID }) {
			t.Errorf("beside %s of %s: %v are left", c.other.ID, c.other.Node, got)
		}
	}
}

// Keys that are no leases, or not of the network.
func TestKeys(t *testing.T) {
	p := &Patient{}
	p.Store.Kind = "etcd"
	good := `{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:07"}}`
	for key, value := range map[string]string{"it's": "1", "10.244.7.0-24": good, "10.9.7.0-24": good, "10.244.8.0-24": "{"} {
		p.Store.Entries = append(p.Store.Entries, lease.Entry{Key: key, Value: []byte(value)})
	}
	p.Store.Config, _ = lease.ParseConfig([]byte(`{"Network":"10.244.0.0/16"}`))
	var ids []string
	for _, f := range checkKeys(t.Context(), p) {
		ids = append(ids, f.ID)
		if want := `muslin leases release 'it'\''s' # after finding out who wrote it`; f.ID == "foreign-key" && f.Fix != want {
			t.Errorf("%s, want %s", f.Fix, want)
		}
	}
	if want := []string{"foreign-key", "lease-unreadable", "lease-outside"}; !slices.Equal(ids, want) {
		t.Errorf("%q, want %q", ids, want)
	}
}
