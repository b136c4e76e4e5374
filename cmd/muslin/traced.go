package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"

	"muslin/cmd/muslin/sight"
	"muslin/cmd/muslin/text"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/host"
)

// What the daemon has to do with `muslin trace`: it looks for a packet in its data path and at the host's devices, for root of
// this host by the control socket, and for a peer over the overlay.

// openWatcher opens what looks for packets. It is no reason not to start: without the right to a packet socket the devices
// are not looked at.
func (d *daemon) openWatcher(c carrier, node *node) {
	cfg := sight.Config{Paths: func() []sight.DataPath { return tracePaths(c, node) }}
	if devices, err := sight.OpenDevices(); err != nil {
		d.log.Info("muslin trace will not see packets at this host's devices", "err", err)
	} else {
		cfg.Devices = devices
	}
	d.watcher = sight.New(cfg)
	d.view.set(func(v *viewState) { v.watcher = d.watcher })
}

// tracePaths are the parts of the data path that are in this process.
func tracePaths(c carrier, node *node) (all []sight.DataPath) {
	for i, n := range node.all() {
		s, ok := parts(c)[i].(*sides)
		if !ok {
			continue
		}
		_, engine := s.conn.(tunnel.Engine)
		all = append(all, sight.DataPath{Observe: s.vtep.Observe, Headroom: n.framing.Headroom(), Engine: engine})
	}
	return all
}

// localOwner is who asks by the control socket.
const localOwner = "control"

// tracing answers questions about a traced packet, and leaves the others to h.
func (d *daemon) tracing(h http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(sight.Path, d.serveTrace)
	mux.Handle("/", h)
	return mux
}

// serveTrace is the control socket's handler.
func (d *daemon) serveTrace(w http.ResponseWriter, r *http.Request) {
	v := d.view.get()
	if !v.running {
		http.Error(w, "it does not carry packets yet ("+v.state+")", http.StatusServiceUnavailable)
		return
	}
	var said any
	var err error
	switch r.Method {
	case http.MethodPost:
		var o sight.Order
		if err = json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&o); err == nil {
			said, err = d.arm(&v, localOwner, o, nil)
		}
	case http.MethodGet:
		said, err = d.seen(&v, localOwner, r.URL.Query().Get("id"), r.URL.Query().Get("end") == "true")
	default:
		http.Error(w, "want GET or POST", http.StatusMethodNotAllowed)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answerJSON(w, said)
}

// armForPeer looks for a packet that a peer sends to one of our containers. It is told of its own packets only: from its
// subnets, and in datagrams of its PublicIP.
func (d *daemon) armForPeer(asker *fib.Peer, o sight.Order) (sight.Armed, error) {
	v := d.view.get()
	if !v.running {
		return sight.Armed{}, fmt.Errorf("it does not carry packets")
	}
	if _, ok := v.ownSubnet(o.Dst); !ok {
		return sight.Armed{}, fmt.Errorf("dst %s: not in this node's subnet", o.Dst)
	}
	return d.arm(&v, asker.Subnet.String(), o, func(s *sight.Sighting) bool {
		return s.Between(v.outerOf(asker, o.Dst.Is6()), asker.Subnet, asker.Other)
	})
}

func (d *daemon) seenForPeer(asker *fib.Peer, id string, end bool) (sight.Report, error) {
	v := d.view.get()
	if !v.running {
		return sight.Report{}, fmt.Errorf("it does not carry packets")
	}
	return d.seen(&v, asker.Subnet.String(), id, end)
}

// outerOf is the PublicIP that a peer's datagrams of a family come from.
func (v *viewState) outerOf(p *fib.Peer, six bool) netip.Addr {
	if p.Subnet.Addr().Is6() != six && p.Other.IsValid() {
		if other := v.table().Lookup(p.Other.Addr()); other != nil {
			return other.PublicIP
		}
	}
	return p.PublicIP
}

func (d *daemon) arm(v *viewState, owner string, o sight.Order, may func(*sight.Sighting) bool) (sight.Armed, error) {
	id, err := v.watcher.Arm(owner, o.Packet, o.Long(), may)
	return sight.Armed{ID: id}, err
}

func (d *daemon) seen(v *viewState, owner, id string, end bool) (sight.Report, error) {
	r, err := v.watcher.Seen(owner, id, end)
	if err != nil {
		return r, err
	}
	r.Ground = v.ground(r.Packet)
	if end { // or else it is about to be asked again
		d.explore(v, r.Packet, &r.Ground)
	}
	return r, nil
}

// ownSubnet is this node's in the family of an address, and whether the address is in it.
func (v *viewState) ownSubnet(a netip.Addr) (netip.Prefix, bool) {
	n := v.node.all()[v.familyOf(a)]
	subnet := v.member.of(n).Masked()
	return subnet, subnet.Contains(a)
}

func (v *viewState) familyOf(a netip.Addr) int {
	if a.Is6() && v.node.second != nil {
		return 1
	}
	return 0
}

// ground is what is known without a look at the host.
func (v *viewState) ground(p sight.Packet) sight.Ground {
	i := v.familyOf(p.Dst)
	n := v.node.all()[i]
	subnet, _ := v.ownSubnet(p.Dst)
	return sight.Ground{TUN: parts(v.carrier)[i].name(), Underlay: n.iface.Name, Subnet: subnet.String(), Network: n.network.String(), Warnings: []string{}}
}

// explore adds what this host does with a packet.
func (d *daemon) explore(v *viewState, p sight.Packet, g *sight.Ground) {
	n := v.node.all()[v.familyOf(p.Dst)]
	_, own := v.ownSubnet(p.Dst)
	g.Forwards, g.SourceCheck = host.Forwards(n.six), n.sourceCheck(d.opts.sourceCheck).String()
	to, err := host.RouteTo(p.Dst)
	if err != nil {
		g.Error = err.Error()
	} else {
		g.Device, g.Gateway, g.Local = to.Device, text.Addr(to.Gateway), to.Local
		if own && !to.Local {
			g.Neighbour, _ = host.NeighbourState(to.Device, p.Dst)
		}
	}
	if from, err := host.RouteTo(p.Src); err == nil {
		g.Source = from.Device
	}
	if own && !n.six && g.TUN != "" && g.Source != g.TUN {
		g.RPFilter = host.StrictReversePath(g.TUN)
	}
	for _, s := range v.host {
		g.Warnings = append(append(g.Warnings, s.Warnings()...), s.ObstacleWarnings()...)
	}
}
