package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"muslin/lease"
	"muslin/lease/etcd"
)

func newConfigCommand() *cobra.Command {
	s := new(storeCommand)
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show, set and check the network's config in the store",
		Long: `config shows and changes the network's config, the one JSON document that all nodes, muslin's and
flannel's, start from. A change reaches a node when its daemon starts the next time.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	s.flags.register(cmd.PersistentFlags())
	cmd.AddCommand(s.newConfigGet(), s.newConfigSet(), newConfigValidate())
	return cmd
}

func (s *storeCommand) newConfigGet() *cobra.Command {
	return &cobra.Command{
		Use:     "get",
		Short:   "Print the network's config as it is in the store",
		Example: "  muslin config get",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.run(cmd, func(ctx context.Context, store *etcd.Store) error {
				raw, _, err := store.Config(ctx)
				if errors.Is(err, lease.ErrNoConfig) {
					return fmt.Errorf("%w under %s: write one with \"muslin config set\", or start the first node with --network", err, s.flags.prefix)
				}
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", raw)
				return err
			})
		},
	}
}

func (s *storeCommand) newConfigSet() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set JSON|FILE|-",
		Short: "Write the network's config, after a check, a diff and a question",
		Example: `  muslin config set '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
  muslin config set net-conf.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := readConfig(cmd, args[0])
			if err != nil {
				return err
			}
			return s.run(cmd, func(ctx context.Context, store *etcd.Store) error {
				return s.setConfig(ctx, cmd, store, want)
			})
		},
	}
	cmd.Flags().BoolVarP(&s.yes, "yes", "y", false, "do not ask")
	return cmd
}

func (s *storeCommand) setConfig(ctx context.Context, cmd *cobra.Command, store *etcd.Store, want []byte) error {
	have, revision, err := store.Config(ctx)
	switch {
	case errors.Is(err, lease.ErrNoConfig):
		revision = lease.Absent
	case err != nil:
		return err
	}
	changes := configDiff(have, want)
	if len(changes) == 0 {
		fmt.Fprintln(cmd.OutOrStdout(), "the config is that already")
		return nil
	}
	for _, line := range changes {
		fmt.Fprintln(cmd.ErrOrStderr(), line)
	}
	question := "Write this config?"
	if revision != lease.Absent {
		question = "Change the config of a network that exists? Nodes follow when their daemons start again."
	}
	if err := confirm(cmd, s.yes, question); err != nil {
		return err
	}
	if err := store.PutConfig(ctx, want, revision); err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), "the config is written")
	return nil
}

func newConfigValidate() *cobra.Command {
	return &cobra.Command{
		Use:     "validate JSON|FILE|-",
		Short:   "Check a network config without any store",
		Example: "  muslin config validate net-conf.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := readConfig(cmd, args[0])
			if err != nil {
				return err
			}
			cfg, err := lease.ParseConfig(raw)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "good: %v in %d subnets of /%d, %v to %v, backend %s\n",
				cfg.Network, cfg.Subnets(), cfg.SubnetLen, cfg.SubnetMin, cfg.SubnetMax, cfg.Backend.Type)
			return err
		},
	}
}

// flannelBackends are the types that some flannel node could use, though this version may not.
var flannelBackends = []string{lease.BackendVXLAN, lease.BackendUDP, lease.BackendHostGW, lease.BackendWireGuard, "ipip", "ipsec", "alloc", "extension", "tencent-vpc", "ali-vpc", "aws-vpc", "gce"}

// readConfig takes the config from the argument itself, a file, or standard input, and checks it.
// Warnings go to standard error.
func readConfig(cmd *cobra.Command, arg string) ([]byte, error) {
	var raw []byte
	var err error
	switch {
	case arg == "-":
		raw, err = io.ReadAll(cmd.InOrStdin())
	case strings.HasPrefix(strings.TrimSpace(arg), "{"):
		raw = []byte(arg)
	default:
		raw, err = os.ReadFile(arg)
	}
	if err != nil {
		return nil, fmt.Errorf("read the config: %w", err)
	}
	cfg, err := lease.ParseConfig(raw)
	if err != nil {
		return nil, err
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
	if err := cfg.Supported(); err != nil {
		if !slices.Contains(flannelBackends, cfg.Backend.Type) {
			return nil, err // nobody's: most likely a typo
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", err)
	}
	return bytes.TrimSpace(raw), nil
}

// configDiff lists the fields that differ, one line each: "- Network: ..." and "+ Network: ...".
func configDiff(have, want []byte) []string {
	a, b := flatten(have), flatten(want)
	names := maps.Clone(a)
	maps.Copy(names, b)
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		old, was := a[name]
		now, is := b[name]
		if was && is && old == now {
			continue
		}
		if was {
			lines = append(lines, fmt.Sprintf("- %s: %s", name, old))
		}
		if is {
			lines = append(lines, fmt.Sprintf("+ %s: %s", name, now))
		}
	}
	return lines
}

// flatten maps the path of every value in a JSON object, such as Backend.Type, to its text. What is no
// object has one nameless value.
func flatten(raw []byte) map[string]string {
	out := map[string]string{}
	var walk func(prefix string, raw json.RawMessage)
	walk = func(prefix string, raw json.RawMessage) {
		var object map[string]json.RawMessage
		if json.Unmarshal(raw, &object) != nil || object == nil {
			out[strings.TrimSuffix(prefix, ".")] = string(raw)
			return
		}
		for name, value := range object {
			walk(prefix+name+".", value)
		}
	}
	if len(raw) > 0 {
		walk("", raw)
	}
	return out
}
