package main

import (
	"fmt"
	"os"
	"path/filepath"

	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/wireguard"
)

// What is different with the wireguard backend. The rest is as with udp: inner packets as they are, to the peer's
// PublicIP; only that the underlay between encrypts them.

// encrypts reports whether it is the wireguard backend.
func (n *node) encrypts() bool { return n.backend == lease.BackendWireGuard }

// keyName is the file in the state directory, unless --wireguard-key-file names another.
const keyName = "wireguard-key"

// keyFile is where this node's private key is.
func (o *options) keyFile() string {
	switch {
	case o.flags.keyFile != "":
		return o.flags.keyFile
	case os.Getenv("WIREGUARD_KEY_FILE") != "": // flannel's only way to say so
		return os.Getenv("WIREGUARD_KEY_FILE")
	}
	return filepath.Join(o.flags.stateDir, keyName)
}

// newEncrypted is the part of newNode. With a peers file the key has to be the one that the peers' files have.
func (d *daemon) newEncrypted(src *source, n *node) error {
	path := d.opts.keyFile()
	key, exposed, err := wireguard.LoadKey(path)
	if err != nil {
		return err
	}
	if exposed {
		d.log.Warn("others than its owner may read the WireGuard key: chmod 0400 the file", "file", path)
	}
	if src.static != nil {
		if theirs := src.static.Own().Attrs.Key; theirs != key.Public() {
			return fmt.Errorf("peers file: our lease has the WireGuard key %s, and the key in %s is %s: give the file of the right one with --wireguard-key-file", theirs, path, key.Public())
		}
	}
	n.key, n.wg, n.framing = key, src.config.Backend, encap.UDP{}
	return nil
}

// sourceCheck is how far the VTEP checks a sender. With wireguard the engine does, and more strictly: who has not the key
// of the peer whose subnet holds the inner source is not heard, and who has it may send from anywhere.
func (n *node) sourceCheck(wanted tunnel.SourceCheck) tunnel.SourceCheck {
	if n.encrypts() {
		return tunnel.SourceCheckOff
	}
	return wanted
}

// openEncrypted opens the underlay. With another daemon in our place it waits for its port.
func (d *daemon) openEncrypted(node *node) (*wireguard.Underlay, error) {
	return wireguard.Open(wireguard.Config{
		Key: node.key, PSK: node.wg.PSK, Port: node.port, Keepalive: node.wg.Keepalive, MTU: node.mtu,
		Paused: d.place.from != nil, Logger: d.log,
	})
}

// fillSessions adds what WireGuard knows of the peers.
func (v *viewState) fillSessions(peers []PeerStatus) error {
	u := v.sides.wireGuard()
	if u == nil {
		return nil
	}
	all, err := u.Sessions()
	if err != nil {
		return err
	}
	for i := range peers {
		p := &peers[i]
		session, ok := all[p.PublicKey]
		if !ok {
			continue
		}
		p.Endpoint = session.Endpoint
		if !session.Handshake.IsZero() {
			t := session.Handshake.UTC()
			p.LastHandshake = &t
		}
	}
	return nil
}

// warnShared is a sentence about peers that share a key; empty: none do.
func (v *viewState) warnShared() string {
	if u := v.sides.wireGuard(); u != nil {
		return u.Shared()
	}
	return ""
}
