package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/rescue"
	"muslin/cmd/muslin/text"
	"muslin/encap"
	"muslin/tunnel/kernel"
)

// "muslin rescue": what it finds, plans, takes and gives back is in package rescue. Here it is asked for, and joined to the
// daemon: what a flanneld was told (rescueadopt.go), the daemon in flannel's place (rescued.go), --undo (rescueundo.go).

// rescueFlags are those of "rescue" besides "run"'s.
type rescueFlags struct {
	run         runFlags
	undo        bool
	yes         bool
	dryRun      bool
	newMAC      bool
	stopFlannel bool

	inside []string // flags whose files are only in flanneld's container
}

func newRescueCommand() *cobra.Command {
	var r rescueFlags
	cmd := &cobra.Command{
		Use:   "rescue",
		Short: "Take over from a flannel whose data path is broken, and give it back (--undo)",
		Long: `rescue restores the pods' traffic on a host whose flannel cannot: its vxlan device is gone or down, its routes or forwarding
entries are, or the kernel's vxlan is broken. It finds flannel's subnet file, devices and lease, says in numbered lines
what it will do, asks, and carries the packets from then on, in the foreground, as "muslin run" does and with its flags.
What a flanneld that runs was told by its command line or environment, where etcd is for example, need not be given again.

flannel's device is set down, not deleted, and its MAC is kept, so that no other node has to learn anything. A flanneld that
runs is not stopped unless --stop-flannel says so. Where etcd is down as well, rescue goes by what is known on this
host: a --peers-file, what muslin knew, or the kernel's tables.

--undo gives everything back to flannel, whole: device, address, routes, neighbours and forwarding entries as flannel sets them
up for the peers that there are now. Ctrl-C or SIGTERM gives it back as it was found. Of a daemon that was killed,
"muslin run" or "muslin rescue" with the same flags goes on, or --undo gives back what it took.`,
		Example: `  muslin rescue --dry-run                                 # what it finds, and what it would do
  muslin rescue --etcd-endpoints https://etcd:2379 --etcd-cafile ca.pem --etcd-certfile node.pem --etcd-keyfile node-key.pem
  systemd-run --unit muslin-rescue muslin rescue --yes    # so that it outlives the ssh session
  muslin rescue --undo`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p := kernel.NetAdmin(); p.Answer == kernel.No {
				return &kernel.NotPrivilegedError{Probe: p}
			}
			if r.undo {
				return r.giveBack(cmd)
			}
			return r.rescue(cmd)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.undo, "undo", false, "give everything back to flannel, while the rescue's daemon runs or after it")
	f.BoolVarP(&r.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&r.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&r.newMAC, "new-mac", false, "take a VtepMAC of muslin's own and publish it in the lease, instead of keeping flannel's")
	f.BoolVar(&r.stopFlannel, "stop-flannel", false, "stop flanneld first (systemctl stop, or SIGTERM and after 3s SIGKILL); --undo starts its service again")
	r.run.register(f)
	f.SortFlags = false
	return cmd
}

// rescue takes over, and is the daemon.
func (r *rescueFlags) rescue(cmd *cobra.Command) error {
	signal.Ignore(syscall.SIGPIPE)
	if err := r.contradictions(); err != nil {
		return err
	}
	if dialControl(r.run.control) == nil {
		return fmt.Errorf("a muslin daemon runs behind %s: `muslin status` shows it, `muslin rescue --undo` ends a rescue", r.run.control)
	}
	asked := rescue.Asked{NewMAC: r.newMAC, StopFlannel: r.stopFlannel}
	if err := r.adopt(cmd.Flags(), &asked); err != nil {
		return err
	}
	if err := goOn(cmd.Flags(), r.run.stateDir); err != nil {
		return err
	}
	opts, err := r.run.options(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	d := newDaemon(opts)
	j, err := rescue.Read(r.run.stateDir)
	if err != nil {
		return err
	}
	if j != nil && !j.Rebooted() {
		if err := j.Here(); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "a rescue is under way since %s, and its daemon is not there: going on with it\n", j.Since.Format(time.RFC3339))
		if r.dryRun {
			return nil
		}
	} else if goes, err := r.begin(cmd, d, asked); err != nil || !goes {
		return err
	}
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	if !hangupsIgnored {
		// A dropped session must not end what carries the node's traffic.
		go takeHangups().run(ctx, func() { nothingToReload(opts.log) }, func() { opts.log.Warn("the terminal is gone; the rescue goes on") })
	}
	err = d.run(ctx)
	if err != nil && d.view.ready() {
		return ranError{err}
	}
	return err
}

// begin finds out what there is, says what will be done, asks, and prepares the daemon for it.
func (r *rescueFlags) begin(cmd *cobra.Command, d *daemon, asked rescue.Asked) (goes bool, err error) {
	set := cmd.Flags()
	if r.run.peersFile == "" { // what is said of etcd has to make sense; whether it answers is another question
		store, err := r.run.store.dial(r.run.store.list(), d.log)
		if err != nil {
			return false, err
		}
		store.Close()
	}
	asked.StateDir, asked.Memory, asked.Prefix, asked.TUN = r.run.stateDir, d.memoryPath(), r.run.store.prefix, r.run.tunName
	asked.Endpoints = r.run.store.endpoints
	asked.PeersFile, asked.Config, asked.Iface, asked.IPMasq = r.run.peersFile, d.opts.wantConfig, d.opts.iface, set.Changed("ip-masq")
	if set.Changed("subnet-file") {
		asked.SubnetFile = r.run.subnetFile
	}
	asked.Connect = func(ctx context.Context) (rescue.Store, error) { return r.run.store.reach(ctx, d.log) }
	asked.Choose = chooseInterface
	asked.OwnMAC = func(six bool) (encap.MAC, error) { return d.vtepMAC(&source{}, six, nil) }
	search := rescue.NewSearch(asked)
	defer search.Close()
	plan, err := search.Find(cmd.Context())
	if err != nil {
		return false, err
	}
	if err := plan.Print(cmd.OutOrStdout()); err != nil || r.dryRun {
		return false, err
	}
	if err := r.confirm(cmd, "Do that?"); err != nil {
		return false, err
	}
	if err := search.Remember(); err != nil {
		return false, err
	}
	if err := r.copyInside(set, plan.Journal); err != nil {
		return false, err
	}
	plan.Journal.Flags = daemonFlags(set, search.Told)
	r.run.subnetFile, d.opts.iface = search.SubnetFile, search.Iface
	r.run.ipMasq = r.run.ipMasq || search.Told["ip-masq"] != nil
	d.rescue = plan.Journal
	if plan.Stop {
		d.toStop = plan.Running
	}
	return true, nil
}

// confirm asks at a terminal only: what is piped in is no answer to a plan that nobody has seen.
func (r *rescueFlags) confirm(cmd *cobra.Command, question string) error {
	if !r.yes && !text.IsTerminal(cmd.InOrStdin()) {
		return fmt.Errorf("%w: there is no terminal to ask on: --yes does it without asking", errDeclined)
	}
	return confirm(cmd, r.yes, question)
}

func (r *rescueFlags) contradictions() error {
	switch {
	case r.run.config != "":
		return errors.New("--config: rescue is about the one network of a flannel; leave it out")
	case r.run.replace:
		return errors.New("--replace: a rescue takes flannel's place, not a muslin's; leave it out, or use `muslin run --replace` where a rescue runs")
	case r.run.embedded:
		return errors.New("--embedded-etcd: a flannel node has its network in an etcd that is there; say where with --etcd-endpoints, or give a --peers-file when it is gone")
	}
	return nil
}
