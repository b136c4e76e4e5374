package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/doctor"
	"muslin/cmd/muslin/text"
	"muslin/lease"
	"muslin/lease/etcd"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
)

// exitStatus ends the command with a status of its own. What there was to say has been said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// doctorFlags are those of "doctor": of the daemon's the ones that say where things are.
type doctorFlags struct {
	run      runFlags
	net      string
	output   string
	fix, yes bool
}

func newDoctorCommand() *cobra.Command {
	d := new(doctorFlags)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong with this node, its peers and the path, and what to do",
		Long: `doctor looks at this host, the daemon, the store, the peers and the path to them, and names what is wrong: one line for
each finding, the likeliest cause first, with what was seen and the command that mends it. It takes a second or two where
all is well, and 15 seconds at most. It changes nothing but with --fix, which does what is safe and asks first.

It works with the daemon running, stopped or stuck, and on a node that has flannel only. A flag that is not given
is what the running daemon was started with, else flanneld, else what /etc/muslin.env says. It takes root to see everything.

The exit status is 0 if nothing was found, 1 with warnings, 2 if something is broken, and 3 if nothing was found but what
matters could not be checked. Every finding is in docs/doctor.md. The last report is kept as doctor.json in the state
directory.`,
		Example: `  muslin doctor
  muslin doctor --fix
  muslin doctor --etcd-endpoints https://etcd:2379 --etcd-cafile ca.pem
  muslin doctor --output json | jq -r '.findings[0] | .id, .fix'`,
		Args:        cobra.NoArgs,
		Annotations: map[string]string{exitFailed: strconv.Itoa(doctor.ExitUnchecked)}, // 1 says that there are warnings
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := d.examine(cmd)
			if err == nil && status != doctor.ExitNothing {
				err = exitStatus(status)
			}
			return err
		},
	}
	f, r := cmd.Flags(), &d.run
	f.BoolVar(&d.fix, "fix", false, "do what is safe about the findings, after asking, and look again")
	f.BoolVarP(&d.yes, "yes", "y", false, "with --fix: do not ask")
	f.StringVarP(&d.output, "output", "o", "text", "text or json")
	f.StringVar(&r.control, "control", defaultControl, "unix `socket` of the daemon")
	f.StringVar(&d.net, "net", "", "where a process runs several networks: the `name` of the one to examine (default: all)")
	r.store.register(f)
	f.StringVar(&r.peersFile, "peers-file", "", "take the leases from this `file`, as the daemon does that was started so")
	f.StringVar(&r.stateDir, "state-dir", defaultStateDir, "`directory` of the daemon's state")
	f.StringVar(&r.subnetFile, "subnet-file", lease.DefaultSubnetFile, "`file` that tells container runtimes this node's subnet")
	f.StringVar(&r.tunName, "tun-name", defaultTUN, "`name` of the TUN device")
	f.StringArrayVar(&r.iface, "iface", nil, "underlay interface, by `name` or address; repeatable")
	f.StringVar(&r.publicIP, "public-ip", "", "`address` that other nodes reach this one at")
	f.StringVar(&r.publicIPv6, "public-ipv6", "", "`address` that other nodes reach this one at over IPv6")
	f.SortFlags = false
	return cmd
}

// examine makes the report, mends what may be mended, and returns the exit status.
func (d *doctorFlags) examine(cmd *cobra.Command) (int, error) {
	if err := text.CheckOutput(d.output); err != nil {
		return 0, err
	}
	if d.yes && !d.fix {
		return 0, errors.New("--yes answers what --fix asks: give both")
	}
	if d.fix && d.output == "json" && !d.yes {
		return 0, errors.New("--fix asks, which a program cannot answer: give --yes as well, or leave --output json out")
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	if err := d.run.store.takePassword(log); err != nil {
		return 0, err
	}
	r, err := d.diagnose(cmd)
	if err != nil {
		return 0, err
	}
	if d.fix {
		if d.output == "text" && len(r.Findings) > 0 {
			if err := r.Print(cmd.OutOrStdout(), text.IsTerminal(cmd.OutOrStdout())); err != nil {
				return 0, err
			}
		}
		did, err := r.Mend(cmd.Context(), cmd.ErrOrStderr(), func(question string) bool { return confirm(cmd, d.yes, question) == nil })
		if err != nil {
			return 0, err
		}
		switch {
		case did:
			if r, err = d.diagnose(cmd); err != nil {
				return 0, err
			}
		case d.output == "text" && len(r.Findings) > 0:
			return r.Exit(), nil // which was printed
		}
	}
	if d.output == "json" {
		return r.Exit(), text.JSON(cmd.OutOrStdout(), r)
	}
	return r.Exit(), r.Print(cmd.OutOrStdout(), text.IsTerminal(cmd.OutOrStdout()))
}

// diagnose examines the network, or each of several.
func (d *doctorFlags) diagnose(cmd *cobra.Command) (*doctor.Report, error) {
	o, err := d.options(cmd)
	if err != nil {
		return nil, err
	}
	names := d.networks(cmd.Context())
	reports, kept := make([]*doctor.Report, len(names)), make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		o := o
		o.Net = name
		all.Go(func() {
			r, stateDir := doctor.Diagnose(cmd.Context(), o)
			reports[i], kept[i] = r, r.Keep(stateDir)
		})
	}
	all.Wait()
	if err := errors.Join(kept...); err != nil && !errors.Is(err, os.ErrPermission) {
		fmt.Fprintf(cmd.ErrOrStderr(), "muslin: %v\n", err)
	}
	return doctor.Merge(reports), cmd.Context().Err()
}

// networks are those to examine: the one that was named, or all of a process that has several; "" where there is but one.
func (d *doctorFlags) networks(ctx context.Context) []string {
	if d.net != "" {
		return []string{d.net}
	}
	ctx, cancel := context.WithTimeout(ctx, doctor.StatusTime)
	defer cancel()
	all := new(control.Networks)
	if err := control.Ask(ctx, d.run.control, control.NetworksPath, all); err != nil || len(all.Networks) == 0 {
		return []string{""}
	}
	var names []string
	for _, n := range all.Networks {
		names = append(names, n.Name)
	}
	return names
}

// options are what the flags say; what they do not say is learnt from the daemon.
func (d *doctorFlags) options(cmd *cobra.Command) (doctor.Options, error) {
	o := doctor.Options{Control: d.run.control, Version: buildVersion()}
	var err error
	if o.Iface.PublicIP, err = optionalIPv4("--public-ip", d.run.publicIP); err != nil {
		return o, err
	}
	d.run.describe(&o)
	o.Guessed = !cmd.Flags().Changed("etcd-endpoints")
	o.Learn = func(o *doctor.Options, pid int) string {
		known, why := startedWith(pid, o.Net)
		if known == nil {
			return why
		}
		merged := *known
		d.given(cmd, &merged)
		merged.describe(o)
		o.Guessed = false
		return why
	}
	return o, nil
}

// given overwrites what was learnt with what was given on the command line or in this command's environment.
func (d *doctorFlags) given(cmd *cobra.Command, r *runFlags) {
	g := &d.run
	for name, take := range map[string]func(){
		"etcd-endpoints": func() { r.store.endpoints = g.store.endpoints }, "etcd-prefix": func() { r.store.prefix = g.store.prefix },
		"etcd-cafile": func() { r.store.caFile = g.store.caFile }, "etcd-certfile": func() { r.store.certFile = g.store.certFile },
		"etcd-keyfile": func() { r.store.keyFile = g.store.keyFile }, "etcd-username": func() { r.store.username = g.store.username },
		"etcd-password": func() { r.store.password = g.store.password }, "etcd-password-file": func() { r.store.password = g.store.password },
		"peers-file": func() { r.peersFile = g.peersFile }, "state-dir": func() { r.stateDir = g.stateDir },
		"subnet-file": func() { r.subnetFile = g.subnetFile }, "tun-name": func() { r.tunName = g.tunName }, "iface": func() { r.iface = g.iface },
		"public-ip": func() { r.publicIP = g.publicIP }, "public-ipv6": func() { r.publicIPv6 = g.publicIPv6 },
	} {
		if cmd.Flags().Changed(name) {
			take()
		}
	}
}

// describe tells the doctor what a daemon with these flags does.
func (r *runFlags) describe(o *doctor.Options) {
	s := &r.store
	endpoints := s.list()
	if r.embedded {
		endpoints = []string{fmt.Sprintf("http://127.0.0.1:%d", r.embeddedPort)}
	}
	o.Store = etcd.Config{
		Endpoints: endpoints, Prefix: s.prefix, CAFile: s.caFile, CertFile: s.certFile, KeyFile: s.keyFile,
		Username: s.username, Password: s.password, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	o.Embedded = r.embedded
	o.PeersFile, o.StateDir, o.SubnetFile, o.TUN = r.peersFile, r.stateDir, r.subnetFile, r.tunName
	o.Iface = host.InterfaceOptions{Iface: r.iface, IfaceRegex: r.ifaceRegex}
	o.Iface.PublicIP, _ = optionalIPv4("", r.publicIP)
	o.Iface.PublicIPv6, _ = optionalIPv6(r.publicIPv6)
	o.NetConfig, _ = r.wantedConfig()
	o.Features, _ = kernel.ParseFeatures(cmp.Or(r.features, "auto"))
}
