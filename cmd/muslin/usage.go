package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"muslin/lease"
)

// What is said to who types a command that is none, an argument too many or a flag that is not there: what to type instead.

// explainUsage has root and all commands below it say so. cobra's own rules decide what is wrong.
func explainUsage(root *cobra.Command) {
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%s (see `%s --help`)", flagError(cmd, err), cmd.CommandPath())
	})
	root.SuggestionsMinimumDistance = 2
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		rule := cmd.Args
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if rule == nil || rule(cmd, args) == nil {
				return nil
			}
			return argsError(cmd, args)
		}
		for _, sub := range cmd.Commands() {
			sub.SuggestionsMinimumDistance = root.SuggestionsMinimumDistance
			walk(sub)
		}
	}
	walk(root)
}

// argsError is about arguments that cmd does not take.
func argsError(cmd *cobra.Command, args []string) error {
	path := cmd.CommandPath()
	if cmd.HasAvailableSubCommands() {
		hint := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("did you mean `%s %s`? ", path, strings.Join(near, "`, or `"+path+" "))
		}
		return fmt.Errorf("%q is no command of %s: %s`%s --help` lists them", args[0], path, hint, path)
	}
	usage := strings.TrimSuffix(cmd.UseLine(), " [flags]")
	if usage == path { // takes none
		return fmt.Errorf("%s takes no arguments, but got %q (see `%s --help`)", path, args[0], path)
	}
	got := "nothing"
	if len(args) > 0 {
		got = fmt.Sprintf("%q", args)
		got = got[1 : len(got)-1]
	}
	return fmt.Errorf("want `%s`, but got %s (see `%s --help`)", usage, got, path)
}

// flagError says what is wrong with a flag in the words of the command line, not of Go.
func flagError(cmd *cobra.Command, err error) string {
	var unknown *pflag.NotExistError
	var value *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "":
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := lease.Nearest(unknown.GetSpecifiedName(), names); near != "" {
			return fmt.Sprintf("%v: did you mean --%s?", err, near)
		}
	case errors.As(err, &value):
		if want := wantedValue(value.GetFlag()); want != "" {
			return fmt.Sprintf("--%s %q: want %s", value.GetFlag().Name, value.GetValue(), want)
		}
	}
	return err.Error()
}

// wantedValue is what a flag of a plain type takes; "" where the flag's own error says it.
func wantedValue(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "int", "int64", "float64":
		return "a number"
	case "uint64":
		return "a number, 0 or above"
	case "uint16":
		return "a number from 0 to 65535"
	case "duration":
		return "a time such as 500ms, 30s or 10m"
	case "bool":
		return "true or false"
	}
	return ""
}

// newHelpCommand is cobra's, but for a topic that there is not: that is an error.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "help [COMMAND]",
		Short:             "Explain a command",
		ValidArgsFunction: completeCommands,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				return argsError(about, rest)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}
