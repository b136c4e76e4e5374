package main

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"muslin/lease"
)

func TestConfigDiff(t *testing.T) {
	have := `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":1}}`
	want := `{ "Network":"10.245.0.0/16", "SubnetLen":25, "Backend":{"Type":"vxlan"} }`
	got := strings.Join(configDiff([]byte(have), []byte(want)), "\n")
	if got != `- Backend.VNI: 1
- Network: "10.244.0.0/16"
+ Network: "10.245.0.0/16"
+ SubnetLen: 25` {
		t.Errorf("got\n%s", got)
	}
	if d := configDiff([]byte(have), []byte(have)); len(d) != 0 {
		t.Errorf("the same differs: %v", d)
	}
	if d := configDiff(nil, []byte(have)); len(d) != 3 {
		t.Errorf("from nothing: %v", d)
	}
}

func TestLeaseKey(t *testing.T) {
	for in, want := range map[string]string{
		"10.244.5.0/24": "10.244.5.0-24",
		"10.244.5.0-24": "10.244.5.0-24",
	} {
		if got, err := leaseKey(in); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"10.244.5.1/24", "10.244.5.0", "junk", ""} {
		if got, err := leaseKey(in); err == nil {
			t.Errorf("%q gave %q, want an error", in, got)
		}
	}
}

func TestConfirm(t *testing.T) {
	for _, c := range []struct {
		input string
		yes   bool
		ok    bool
	}{{"y\n", false, true}, {"Yes\n", false, true}, {"y", false, true}, {"\n", false, false}, {"n\n", false, false}, {"", false, false}, {"", true, true}} {
		cmd := new(cobra.Command)
		cmd.SetIn(strings.NewReader(c.input))
		cmd.SetContext(t.Context())
		cmd.SetErr(new(bytes.Buffer))
		err := confirm(cmd, c.yes, "Really?")
		if (err == nil) != c.ok || err != nil && !errors.Is(err, errDeclined) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// run executes the muslin command line in this process.
func run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	err = root.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

func TestConfigValidate(t *testing.T) {
	out, _, err := run(t, "config", "validate", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`)
	if err != nil || !strings.Contains(out, "255 subnets of /24, 10.244.1.0 to 10.244.255.0, backend vxlan") {
		t.Errorf("%q, %v", out, err)
	}
	_, errs, err := run(t, "config", "validate", `{"Network":"10.244.0.0/16","Netwrok":1}`)
	if err != nil || !strings.Contains(errs, "Netwrok") {
		t.Errorf("unknown field: %q, %v", errs, err)
	}
	if _, _, err := run(t, "config", "validate", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxln"}}`); err == nil {
		t.Error("a backend that nobody has is good")
	}
	if _, errs, err := run(t, "config", "validate", `{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}`); err != nil || !strings.Contains(errs, "ipip") {
		t.Errorf("ipip: %q, %v", errs, err)
	}
	if _, _, err := run(t, "config", "validate", `{"Network":"10.244.0.0/29"}`); err == nil {
		t.Error("a /29 network is good")
	}
}

func TestWritePeersFile(t *testing.T) {
	node := func(subnet, ip string, revision int64) lease.Lease {
		p := netip.MustParsePrefix(subnet)
		return lease.Lease{Key: lease.Key(p), Subnet: p, Revision: revision,
			Attrs: lease.Attrs{PublicIP: netip.MustParseAddr(ip), BackendType: lease.BackendUDP}}
	}
	var out, warn bytes.Buffer
	err := writePeersFile(&out, &warn, []lease.Lease{
		node("10.244.1.0/24", "192.0.2.1", 9), node("10.244.2.0/24", "192.0.2.1", 5), node("10.244.3.0/24", "192.0.2.3", 1)})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := lease.ParsePeersFile(out.Bytes())
	if err != nil || len(entries) != 2 || entries[0].Key != "10.244.1.0-24" || entries[1].Key != "10.244.3.0-24" {
		t.Errorf("%v, %v from %s", entries, err, out.String())
	}
	if !strings.Contains(warn.String(), "10.244.2.0-24") {
		t.Errorf("warned %q", warn.String())
	}
	if err := writePeersFile(&out, &warn, nil); err == nil {
		t.Error("no lease made a file")
	}
}

func TestUnknownCommand(t *testing.T) {
	if _, _, err := run(t, "rnu"); err == nil || !strings.Contains(err.Error(), "rnu") {
		t.Errorf("%v", err)
	}
}

func TestUnknownFlag(t *testing.T) {
	_, _, err := run(t, "run", "--netwrok=1")
	if err == nil || !strings.Contains(err.Error(), "muslin run --help") {
		t.Errorf("%v", err)
	}
}

// Every command has help, and an example where it does something.
func TestHelp(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" {
			t.Errorf("%s has no help", cmd.CommandPath())
		}
		if cmd.HasParent() && cmd.Runnable() && !cmd.HasSubCommands() && cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand())
}
