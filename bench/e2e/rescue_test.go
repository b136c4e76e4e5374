//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// A node that is set up as flannel sets it up loses its device's routes, is rescued, and given back. bench/rescue breaks nodes in
// more ways, under traffic, and beside a real flanneld.
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ── br0 ── flannel.1 ─ h2 ─ cni0 ── p2a
func TestRescue(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "bridge", "etcdctl")
	l := newLab(t, 2)
	ctx, h := t.Context(), l.Host(2)
	m := startMuslin(t, l.Host(1), "--embedded-etcd", "--network", network)
	a, node := addPod(t, m, "a"), status(t, m).Node
	subnet := netip.MustParsePrefix("10.244.250.0/24")
	if subnet == node.Subnet.Masked() {
		subnet = netip.MustParsePrefix("10.244.251.0/24")
	}
	v := must(h.SetupKernelVXLAN(ctx, 1, 8472, subnet))(t)
	b := must(h.AddPod(ctx, "a", v.PodNetwork()))(t)
	store := labtest.EtcdOn(l.Host(1))
	store.Do(t, "put", v.LeaseKey(prefix), v.LeaseValue(1))
	waitPeers(t, m, 1)
	own := h.Muslin(labtest.Bin)
	env := fmt.Sprintf("FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=false\n", network, v.PodNetwork().Gateway, v.MTU)
	if err := os.WriteFile(own.SubnetFile, []byte(env), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := v.AddPeer(ctx, node.Subnet, node.VtepMAC, node.PublicIP); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, h.Node)
	expectPing(t, b.Node, a.Addr, 3)
	runIn(t, h.Node, "ip", "route", "flush", "dev", v.Device)
	expectNoAnswer(t, b.Node, a.Addr)

	command := h.MuslinArgs(labtest.Bin)
	command = slices.Concat(command[:1], []string{"rescue", "--yes", "--etcd-endpoints", endpoint(l.Host(1))}, command[2:])
	own.Proc = must(h.Start("muslin", nil, command...))(t)
	if err := own.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	waitPeers(t, own, 1)
	expectPing(t, b.Node, a.Addr, 3)
	expectWords(t, own.Output(), "there is no route to "+node.Subnet.String(), "set "+v.Device+" down")
	expectWords(t, strings.Join(status(t, own).Warnings, "\n"), "muslin rescue --undo")
	if now := status(t, own).Node.VtepMAC; now != v.MAC {
		t.Errorf("the MAC is %s, was %s", now, v.MAC)
	}

	began := time.Now()
	out := must(h.Run(ctx, labtest.Bin, "rescue", "--undo", "--yes", "--state-dir", own.StateDir, "--control", own.Control))(t)
	t.Logf("undone in %v:\n%s", time.Since(began), out)
	expectExit(t, own.Proc, 0)
	expectPing(t, b.Node, a.Addr, 3)
	after := snapshot(t, h.Node) // in which the kernel's own routes may stand in another order
	if gone, come := without(before, after), without(after, before); gone+come != "" {
		t.Errorf("gone:\n%scome:\n%s", gone, come)
	}
}
