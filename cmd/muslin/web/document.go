package web

import (
	"reflect"
	"strings"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/lease"
	"muslin/tunnel"
)

// document is the networks as the page has them. It goes out as JSON, whole or as changes.
type document struct {
	Time        int64               `json:"time"` // ms since 1970
	Version     string              `json:"version"`
	ConfigError string              `json:"config_error"`
	Networks    map[string]*network `json:"networks"`
	Drops       map[string]string   `json:"drops"`   // what a reason means, by its name
	Skipped     map[string]string   `json:"skipped"` // the same of leases that are not used
}

type network struct {
	State  string                         `json:"state"`
	Error  string                         `json:"error"`
	Again  *time.Time                     `json:"again"`
	Status control.Status                 `json:"status"` // without its peers
	Peers  map[string]*control.PeerStatus `json:"peers"`  // by subnet
	Doctor *report                        `json:"doctor"`
}

var dropMeanings = func() map[string]string {
	all := make(map[string]string)
	for _, r := range tunnel.Reasons() {
		all[r.String()] = r.Explain()
	}
	return all
}()

func (h *hub) document(from *control.Networks, now time.Time) *document {
	d := &document{Time: now.UnixMilli(), Version: from.Version, ConfigError: from.Error, Networks: make(map[string]*network), Drops: dropMeanings, Skipped: make(map[string]string)}
	for _, one := range from.Networks {
		n := &network{State: one.State, Error: one.Error, Again: one.Again, Peers: make(map[string]*control.PeerStatus)}
		if h.cfg.Findings != nil {
			n.Doctor = h.found.read(h.cfg.Findings(one.Name))
		}
		if one.Status != nil {
			n.Status = *one.Status
		}
		for i := range n.Status.Peers {
			p := &n.Status.Peers[i]
			if p.LastRx != nil {
				second := p.LastRx.Truncate(time.Second) // what a person reads
				p.LastRx = &second
			}
			n.Peers[p.Subnet] = p
		}
		n.Status.Peers = nil
		for reason := range n.Status.Skipped {
			d.Skipped[reason] = lease.ExplainSkip(reason)
		}
		d.Networks[one.Name] = n
	}
	return d
}

// changes is the JSON merge patch (RFC 7396) that makes the new document of the old one. Lists are in it whole; and
// where the JSON has null, a merge removes the member, which means the same to the page.
func changes(old, new *document) any {
	patch, _ := diff(reflect.ValueOf(old).Elem(), reflect.ValueOf(new).Elem())
	return patch
}

var timeType = reflect.TypeFor[time.Time]()

// diff is the patch from one value to another of the same type, and whether there is any.
func diff(old, new reflect.Value) (any, bool) {
	switch {
	case old.Kind() == reflect.Pointer && !old.IsNil() && !new.IsNil():
		if old.Pointer() == new.Pointer() {
			return nil, false
		}
		return diff(old.Elem(), new.Elem())
	case old.Kind() == reflect.Struct && old.Type() != timeType:
		patch := make(map[string]any)
		diffFields(patch, old, new)
		return patch, len(patch) > 0
	case old.Kind() == reflect.Map && old.Type().Key().Kind() == reflect.String:
		patch := make(map[string]any)
		for _, key := range new.MapKeys() {
			before := old.MapIndex(key)
			if !before.IsValid() {
				patch[key.String()] = new.MapIndex(key).Interface()
			} else if p, changed := diff(before, new.MapIndex(key)); changed {
				patch[key.String()] = p
			}
		}
		for _, key := range old.MapKeys() {
			if !new.MapIndex(key).IsValid() {
				patch[key.String()] = nil
			}
		}
		return patch, len(patch) > 0
	case old.Comparable() && new.Comparable():
		return new.Interface(), !old.Equal(new)
	}
	return new.Interface(), !reflect.DeepEqual(old.Interface(), new.Interface())
}

// diffFields puts the fields that differ into the patch, by the names that encoding/json has for them.
func diffFields(patch map[string]any, old, new reflect.Value) {
	for i := range old.NumField() {
		field := old.Type().Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case name == "-" || !field.IsExported():
			continue
		case name == "" && field.Anonymous && field.Type.Kind() == reflect.Struct:
			diffFields(patch, old.Field(i), new.Field(i))
			continue
		case name == "":
			name = field.Name
		}
		if p, changed := diff(old.Field(i), new.Field(i)); changed {
			patch[name] = p
		}
	}
}
