package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/top"
)

// What a shell offers at the Tab key beside the names of commands and flags (muslin completion). What the daemon knows is asked
// from it, and left out where there is none.

// completePatience is how long a person who pressed Tab waits for a daemon that does not answer.
const completePatience = 300 * time.Millisecond

// completion is what there may be at a place; a nil one leaves files.
type completion = cobra.CompletionFunc

// words offers these.
func words(of ...string) completion {
	return cobra.FixedCompletions(of, cobra.ShellCompDirectiveNoFileComp)
}

// completeCommands offers the commands below those that stand there already.
func completeCommands(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var all []cobra.Completion
	if parent, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
		for _, c := range parent.Commands() {
			if c.IsAvailableCommand() {
				all = append(all, cobra.CompletionWithDesc(c.Name(), c.Short))
			}
		}
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}

// completePeers offers the peers' subnets, each with its PublicIP, where the n-th argument is one.
func completePeers(n int) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var all []cobra.Completion
		if len(args) == n {
			for _, network := range known(cmd) {
				for _, p := range network.Status.Peers {
					all = append(all, cobra.CompletionWithDesc(p.Subnet, p.PublicIP))
				}
			}
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNetworks offers the names of a process's networks.
func completeNetworks(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var all []cobra.Completion
	for _, network := range known(cmd) {
		if network.Name != "" {
			all = append(all, cobra.CompletionWithDesc(network.Name, network.State))
		}
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}

// known are the networks of the daemon that the command line names, or the one, with an empty name; none where none answers.
func known(cmd *cobra.Command) []control.NetworkStatus {
	ctx, cancel := context.WithTimeout(context.Background(), completePatience)
	defer cancel()
	socket, _ := cmd.Flags().GetString("control")
	name, _ := cmd.Flags().GetString("net")
	all := new(control.Networks)
	if name == "" && control.Ask(ctx, socket, control.NetworksPath, all) == nil {
		return all.Networks
	}
	one, err := control.AskNetwork(ctx, socket, name)
	if err != nil {
		return nil
	}
	return []control.NetworkStatus{{Name: name, State: one.State, Status: one}}
}

// completeArguments says what each command's arguments and flags may be, below root.
func completeArguments(root *cobra.Command) {
	arguments := map[string]completion{
		"muslin ping":            completePeers(0),
		"muslin bench link":      completePeers(0),
		"muslin trace":           completeTrace,
		"muslin config set":      nil, // a file
		"muslin config validate": nil,
	}
	flags := map[string]completion{
		"output": words("text", "json"), "net": completeNetworks, "peer": completePeers(0), "sort": words(top.Columns()...),
		"point": words("inner", "outer", "drops"), "log-level": words("debug", "info", "warn", "error"), "log-format": words("text", "json"),
		"source-check": words("strict", "peers", "off"), "wireguard": words("auto", "kernel", "userspace"),
		"backend": words("vxlan", "udp", "host-gw", "wireguard"),
	}
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if complete, ok := arguments[cmd.CommandPath()]; ok {
			cmd.ValidArgsFunction = complete
		} else if cmd.ValidArgsFunction == nil && !cmd.HasSubCommands() {
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
		for name, complete := range flags {
			if cmd.LocalFlags().Lookup(name) != nil && cmd.Flags().Lookup(name) != nil {
				_ = cmd.RegisterFlagCompletionFunc(name, complete) // there is such a flag, and nobody was here before
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

func completeTrace(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var all []cobra.Completion
	if len(args) == 2 {
		all = []cobra.Completion{"icmp", "tcp", "udp"}
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}

func newCompletionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print what a shell needs to complete commands, flags and peers",
		Long: `completion prints a script that has the shell complete the names of commands and flags at the Tab key and, asked from the
running daemon, those of peers and networks. bash needs the package bash-completion.`,
		Example: `  muslin completion bash > /etc/bash_completion.d/muslin
  muslin completion zsh > /usr/local/share/zsh/site-functions/_muslin
  muslin completion fish > /etc/fish/completions/muslin.fish
  source <(muslin completion bash)         # in this shell only`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []cobra.Completion{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			}
			return root.GenBashCompletionV2(out, true)
		},
	}
}
