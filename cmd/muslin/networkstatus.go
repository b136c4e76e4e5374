package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"muslin/cmd/muslin/capture"
	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/sight"
	"muslin/tunnel/handover"
	"muslin/tunnel/kernel"
)

// The control socket of a process with several networks. It answers for any of them, as that one's own socket does.
//
//	GET /v1/networks             Networks
//	GET /v1/status?net=NAME      Status
//	GET /v1/route?to=[&net=NAME] RouteAnswer; without a name, of the network that the address is in
//	GET /v1/capture?…&net=NAME   a stream of packets (package capture)

// status is the network's, whether it runs or not.
func (m *member) status(which selection) control.NetworkStatus {
	d, again, failed := m.now()
	out := control.NetworkStatus{Name: m.name, Control: m.flags.control}
	if failed == nil {
		out.Status = d.statusOf(which)
		out.State = out.Status.State
		return out
	}
	again = again.UTC()
	out.State, out.Error, out.Again = control.StateFailed, failed.Error(), &again
	out.Status = newStatus()
	out.Status.State = control.StateFailed
	out.Status.Warn(control.AboutNetwork, fmt.Sprintf("the network does not run, and starts again at %s: %v", again.Format(time.TimeOnly), failed))
	out.Status.Privileges = privilegeStatus(d.among.privileges())
	return out
}

func (n *networks) status() *control.Networks {
	return n.statusOf(func(string) selection { return nil })
}

// statusOf has the peers of each network, by its name, that are wanted.
func (n *networks) statusOf(which func(name string) selection) *control.Networks {
	n.mu.Lock()
	s := &control.Networks{Version: buildVersion(), Config: n.p.flags.config, Loaded: n.loaded.UTC(), Error: n.refused,
		Networks: []control.NetworkStatus{}, Privileges: privilegeStatus(n.kept, n.keptErr), Process: processStatus()}
	n.mu.Unlock()
	if u, err := kernel.Uname(); err == nil {
		s.Kernel = u.Release
	}
	members := n.all()
	for _, name := range slices.Sorted(maps.Keys(members)) {
		s.Networks = append(s.Networks, members[name].status(which(name)))
	}
	return s
}

// handler answers on the process's control socket.
func (n *networks) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+control.NetworksPath, func(w http.ResponseWriter, r *http.Request) {
		look, err := control.ParseLook(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answerJSON(w, n.statusOf(func(string) selection { return those(look.Peers) }))
	})
	mux.HandleFunc("GET "+control.StatusPath, func(w http.ResponseWriter, r *http.Request) {
		if m := n.chosen(w, r, nil); m != nil {
			serveStatus(w, r, func(which selection) *control.Status { return m.status(which).Status }, func(asked control.Peers) {
				if d, _, _ := m.now(); d != nil {
					d.watch(asked)
				}
			})
		}
	})
	mux.HandleFunc("GET "+control.RoutePath, func(w http.ResponseWriter, r *http.Request) {
		m := n.chosen(w, r, n.holder)
		if m == nil {
			return
		}
		if d, _, failed := m.now(); failed != nil {
			http.Error(w, fmt.Sprintf("network %s does not run: %v", m.name, failed), http.StatusServiceUnavailable)
		} else {
			d.serveRoute(w, r)
		}
	})
	for pattern, serve := range map[string]func(*daemon, http.ResponseWriter, *http.Request){
		"GET " + capture.Path: (*daemon).serveCapture,
		sight.Path:            (*daemon).serveTrace,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			m := n.chosen(w, r, nil)
			if m == nil {
				return
			}
			if d, _, failed := m.now(); failed != nil {
				http.Error(w, fmt.Sprintf("network %s does not run: %v", m.name, failed), http.StatusServiceUnavailable)
			} else {
				serve(d, w, r)
			}
		})
	}
	mux.HandleFunc("POST "+handover.Path, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, notReplaced, http.StatusConflict)
	})
	return mux
}

// notReplaced is why none of several networks can be handed over.
const notReplaced = "it runs several networks (--config), and such a process cannot be replaced yet: stop it and start the other, or have it read its file again (SIGHUP, `systemctl reload`)"

// chosen is the network that a request names, or that guess finds; nil: an answer was given.
func (n *networks) chosen(w http.ResponseWriter, r *http.Request, guess func(*http.Request) *member) *member {
	name := r.URL.Query().Get("net")
	if name == "" && guess != nil {
		if m := guess(r); m != nil {
			return m
		}
	}
	if name == "" {
		http.Error(w, "it runs several networks: choose one with --net: "+strings.Join(n.names(), ", ")+"; or give its own socket with --control", http.StatusMultipleChoices)
		return nil
	}
	m := n.all()[name]
	if m == nil {
		http.Error(w, fmt.Sprintf("there is no network %s: --net takes one of %s", name, strings.Join(n.names(), ", ")), http.StatusBadRequest)
	}
	return m
}

// holder is the network that an address is in; nil: none.
func (n *networks) holder(r *http.Request) *member {
	to, err := netip.ParseAddr(r.URL.Query().Get("to"))
	if err != nil {
		return nil
	}
	for _, m := range n.all() {
		d, _, failed := m.now()
		v := d.view.get()
		if failed != nil || v.node == nil {
			continue
		}
		for _, node := range v.node.all() {
			if node.network.Contains(to.Unmap()) {
				return m
			}
		}
	}
	return nil
}

// ofNetwork answers for one network alone: a request that names another is refused.
func ofNetwork(name string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked := r.URL.Query().Get("net")
		switch {
		case asked == "" || asked == name:
			h.ServeHTTP(w, r)
		case name == "":
			http.Error(w, "it runs one network: leave --net out", http.StatusBadRequest)
		default:
			http.Error(w, fmt.Sprintf("this socket is network %s's: leave --net out, or give the process's socket with --control", name), http.StatusBadRequest)
		}
	})
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
}
