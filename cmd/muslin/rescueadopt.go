package main

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"muslin/cmd/muslin/rescue"
	"muslin/lease/etcd"
)

// alike are flanneld's flags that mean the same here.
var alike = []string{"etcd-endpoints", "etcd-prefix", "etcd-keyfile", "etcd-certfile", "etcd-cafile", "etcd-username", "etcd-password",
	"iface", "iface-regex", "iface-can-reach", "public-ip", "public-ipv6", "subnet-file", "ip-masq", "subnet-lease-renew-margin", "iptables-forward-rules"}

// credentials are those of them that name a file, which may be a container's. The subnet file is the host's in any case: it is
// for the host's container runtime.
var credentials = []string{"etcd-keyfile", "etcd-certfile", "etcd-cafile"}

// adopt finds the flanneld that is meant, and takes what it was told where nothing else is given.
func (r *rescueFlags) adopt(set *pflag.FlagSet, asked *rescue.Asked) error {
	asked.Running, asked.Others = r.meant(set, rescue.FindFlanneld())
	if len(asked.Running) == 0 {
		return nil
	}
	p := asked.Running[len(asked.Running)-1] // one that is ending may be there still
	if slices.ContainsFunc(asked.Running, func(other rescue.Process) bool { return !slices.Equal(whose(other), whose(p)) }) {
		var said []string
		for _, p := range asked.Running {
			said = append(said, fmt.Sprintf("%s with %s", p, strings.Join(whose(p), " ")))
		}
		return fmt.Errorf("several flannelds run here: %s; say which of them is meant with --etcd-prefix or --subnet-file", strings.Join(said, "; "))
	}
	if kube := p.Flag("kube-subnet-mgr"); len(kube) > 0 && kube[0] != "false" {
		return fmt.Errorf("%s keeps its leases in Kubernetes (--kube-subnet-mgr), not in etcd: muslin knows no such leases and cannot stand in for it", p)
	}
	for _, name := range alike {
		values := p.Flag(name)
		if len(values) == 0 || set.Changed(name) || slices.Contains(credentials, name) && !strings.Contains(r.run.store.endpoints, "https://") {
			continue // flanneld, too, leaves files for TLS alone where etcd is plain http
		}
		for i, v := range values {
			if slices.Contains(credentials, name) {
				otherProcess{pid: p.PID}.find(&values[i])
				if v = values[i]; strings.HasPrefix(v, "/proc/") {
					r.inside = append(r.inside, name)
				}
			}
			if err := set.Set(name, v); err != nil {
				return fmt.Errorf("--%s, as %s has it: %w", name, p, err)
			}
		}
		if name == "etcd-password" {
			values = []string{"…"}
		}
		asked.Adopted = append(asked.Adopted, "--"+name+" "+strings.Join(values, " --"+name+" "))
	}
	return nil
}

// copyInside copies what only a flanneld's container has into the state directory, since it is needed again when that
// container is gone. The journal's end removes it.
func (r *rescueFlags) copyInside(set *pflag.FlagSet, j *rescue.Journal) error {
	for _, name := range r.inside {
		data, err := os.ReadFile(set.Lookup(name).Value.String())
		if err == nil {
			err = os.MkdirAll(r.run.stateDir, 0o700)
		}
		to := rescue.Copy(r.run.stateDir, name)
		if err == nil {
			err = os.WriteFile(to, data, 0o600)
		}
		if err == nil {
			err = set.Set(name, to)
		}
		if err != nil {
			return fmt.Errorf("copy flanneld's --%s out of its container: %w; give the flag with a file of this host", name, err)
		}
		j.Copies = append(j.Copies, to)
	}
	return nil
}

// meant tells the flannelds of this network from those of others: by what the flags say, where a host has several.
func (r *rescueFlags) meant(set *pflag.FlagSet, all []rescue.Process) (these, others []rescue.Process) {
	for _, p := range all {
		fits := true
		for _, name := range []string{"etcd-prefix", "subnet-file"} {
			given := set.Lookup(name)
			has := given.DefValue
			if v := p.Flag(name); len(v) > 0 {
				has = v[0]
			}
			if name == "subnet-file" && sameFile(has, given.Value.String()) {
				continue
			}
			fits = fits && (!given.Changed || path.Clean(given.Value.String()) == path.Clean(has))
		}
		if fits {
			these = append(these, p)
		} else {
			others = append(others, p)
		}
	}
	return these, others
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}

// whose says which network a flanneld is of.
func whose(p rescue.Process) []string {
	said := []string{"--etcd-prefix", etcd.DefaultPrefix}
	if v := p.Flag("etcd-prefix"); len(v) > 0 {
		said = []string{"--etcd-prefix", v[0]}
	}
	if v := p.Flag("subnet-file"); len(v) > 0 {
		said = append(said, "--subnet-file", v[0])
	}
	return said
}

// daemonFlags are those that were given, or taken from a flanneld, or found out; but for a password, which is written
// nowhere.
func daemonFlags(set *pflag.FlagSet, told map[string][]string) map[string][]string {
	all := make(map[string][]string)
	ours := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(runFlags).register(ours)
	set.VisitAll(func(flag *pflag.Flag) {
		if !flag.Changed || ours.Lookup(flag.Name) == nil || slices.Contains([]string{"etcd-password", "state-dir", "log-level", "log-format"}, flag.Name) {
			return
		}
		all[flag.Name] = []string{flag.Value.String()}
		if list, ok := flag.Value.(pflag.SliceValue); ok {
			all[flag.Name] = list.GetSlice()
		}
	})
	maps.Copy(all, told)
	return all
}
