//go:build linux

package lab

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
)

// SetOffloads switches offloads of a device, named as ethtool(8) lists them ("tx-checksumming"), and returns
// what `ethtool -k` then says of all of them. Some depend on others, and some cannot be switched on this
// device: what came of it may differ from what was wanted, without an error.
func (n *Node) SetOffloads(ctx context.Context, device string, want map[string]bool) (map[string]bool, error) {
	command := []string{"ethtool", "-K", device}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		value := "off"
		if want[name] {
			value = "on"
		}
		command = append(command, name, value)
	}
	_, err := n.Run(ctx, command...)
	var exit *ExitError
	if errors.As(err, &exit) && strings.Contains(exit.Output, "Could not change any device features") {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	out, err := n.Output(ctx, "ethtool", "-k", device)
	if err != nil {
		return nil, err
	}
	return parseOffloads(out), nil
}

// HasOffload reports whether this kernel's device can have an offload: neither is it unknown, nor off for good.
// What devices of a kind can do differs from kernel to kernel.
func (n *Node) HasOffload(ctx context.Context, device, name string) (bool, error) {
	out, err := n.Output(ctx, "ethtool", "-k", device)
	if err != nil {
		return false, err
	}
	return canHave(out, name), nil
}

// canHave reads `ethtool -k`.
func canHave(out, name string) bool {
	for line := range strings.Lines(out) {
		if have, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && have == name {
			return value != "off [fixed]"
		}
	}
	return false
}

// parseOffloads reads `ethtool -k`: lines "\tname: on [fixed]" under a heading.
func parseOffloads(out string) map[string]bool {
	got := make(map[string]bool)
	for line := range strings.Lines(out) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if f := strings.Fields(value); ok && len(f) > 0 {
			got[name] = f[0] == "on"
		}
	}
	return got
}
