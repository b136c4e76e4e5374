//go:build linux

package compare

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"muslin/bench/lab"
)

// flannelUDP is flannel with its udp backend: the one-packet-a-call tunnel that muslin is to replace.
type flannelUDP struct {
	bin    string // flanneld; empty: none was given
	muslin string // writes the network's config into the store
}

func (flannelUDP) Entry() Entry {
	return Entry{Name: "flannel-udp", About: "flannel, udp backend", Rival: true}
}

const flannelConfig = `{"Network":"` + podNetwork + `","Backend":{"Type":"udp"}}`

func (f flannelUDP) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	if f.bin == "" {
		return Joined{}, fmt.Errorf("%w: flanneld is no Debian package: give a binary with --flanneld PATH", ErrMissing)
	}
	if err := missing(f.bin, "etcd"); err != nil {
		return Joined{}, err
	}
	joined := Joined{Version: "flannel " + versionLine(ctx, f.bin, "--version")}
	store, err := f.startStore(ctx, l)
	if err != nil {
		return joined, err
	}
	for _, h := range l.Hosts() {
		subnetFile := filepath.Join(h.Dir, "subnet.env")
		daemon, err := h.Start("flanneld", nil, f.bin, "--etcd-endpoints", store, "--iface", "eth0", "--subnet-file", subnetFile)
		if err != nil {
			return joined, err
		}
		joined.Daemons = append(joined.Daemons, daemon)
		var content []byte
		if err := until(ctx, daemon, "its subnet file", func() (bool, error) {
			content, err = os.ReadFile(subnetFile)
			return err == nil, nil
		}); err != nil {
			return joined, err
		}
		network, err := lab.ParseSubnetEnv(string(content))
		if err != nil {
			return joined, fmt.Errorf("%s: %w", subnetFile, err)
		}
		if _, err := h.AddPod(ctx, "a", network); err != nil {
			return joined, err
		}
		if err := h.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
			return joined, err
		}
	}
	return joined, nil
}

// startStore starts an etcd with the network's config on the first host and returns its endpoint.
func (f flannelUDP) startStore(ctx context.Context, l *lab.Lab) (string, error) {
	h := l.Host(1)
	client := fmt.Sprintf("http://%s:2379", h.Addr)
	peer := fmt.Sprintf("http://%s:2380", h.Addr)
	server, err := h.Start("etcd", nil, "etcd", "--name", "bench", "--data-dir", filepath.Join(h.Dir, "etcd"),
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "bench="+peer)
	if err != nil {
		return "", err
	}
	if err := h.WaitListen(ctx, server, "tcp", 2379); err != nil {
		return "", err
	}
	_, err = h.Run(ctx, f.muslin, "config", "set", "--yes", "--etcd-endpoints", client, flannelConfig)
	return client, err
}
