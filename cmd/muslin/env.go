package main

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// envPrefixes are looked at in this order: ours, then flannel's.
var envPrefixes = []string{"MUSLIN_", "FLANNELD_"}

// flagsFromEnv sets every flag that was not given on the command line from its environment variable:
// --etcd-endpoints from MUSLIN_ETCD_ENDPOINTS, else from FLANNELD_ETCD_ENDPOINTS. A repeatable flag
// takes a comma-separated list, but for a regexp, which is one. An empty variable counts as not set.
func flagsFromEnv(flags *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var failed error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" || failed != nil {
			return
		}
		for _, prefix := range envPrefixes {
			name := prefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
			value, ok := lookup(name)
			if !ok || value == "" {
				continue
			}
			values := []string{value}
			if f.Value.Type() == "stringArray" && !strings.HasSuffix(f.Name, "-regex") { // a regexp may have commas
				values = strings.Split(value, ",")
			}
			for _, v := range values {
				if err := flags.Set(f.Name, v); err != nil {
					failed = fmt.Errorf("environment variable %s: %w", name, err)
				}
			}
			return
		}
	})
	return failed
}
