package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/privilege"
	"muslin/tunnel/host"
)

// reasons says what a capability is kept for, by its number.
type reasons map[int]string

func (r reasons) set() privilege.Set {
	var s privilege.Set
	for c := range r {
		s |= privilege.Of(c)
	}
	return s
}

// givePrivilegesUp leaves the daemon what it needs until its end. It is called when everything is open, in
// place and bound.
func (d *daemon) givePrivilegesUp(needs host.Needs) {
	if d.among != nil {
		return // the process does
	}
	keep := d.capabilitiesNeeded(needs)
	err := privilege.Reduce(keep.set(), needs.Programs)
	if err != nil {
		d.log.Warn("the daemon keeps rights that it does not need", "err", err)
	}
	d.view.set(func(v *viewState) { v.kept, v.keptErr = keep, err })
}

func (d *daemon) capabilitiesNeeded(needs host.Needs) reasons {
	keep := reasons{unix.CAP_NET_ADMIN: "the TUN device's settings, routes and firewall rules"}
	if needs.RawSocket {
		keep[unix.CAP_NET_RAW] = "iptables-legacy speaks to the kernel through a raw socket"
	}
	keep.forFiles(d.opts.flags.readAgain(), d.opts.flags.writtenTo())
	return keep
}

// forFiles adds what it takes to read files again, and to write into directories.
func (r reasons) forFiles(read, write []string) {
	dac := privilege.Of(unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH)
	for _, path := range read {
		if err := privilege.TryWithout(dac, func() error { return tryRead(path) }); errors.Is(err, fs.ErrPermission) {
			r[unix.CAP_DAC_READ_SEARCH] = fmt.Sprintf("the file is read again when it changes: %v; give it to user %d to do without", err, os.Geteuid())
		}
	}
	for _, dir := range write {
		if err := privilege.TryWithout(dac, func() error { return tryWrite(dir) }); errors.Is(err, fs.ErrPermission) {
			r[unix.CAP_DAC_OVERRIDE] = fmt.Sprintf("the directory is written to: %v; give it to user %d to do without", err, os.Geteuid())
		}
	}
}

// readAgain are the files that may be read at any time.
func (r *runFlags) readAgain() []string {
	var all []string
	for _, path := range []string{r.store.caFile, r.store.certFile, r.store.keyFile, r.peersFile} {
		if path != "" {
			all = append(all, path)
		}
	}
	return all
}

// writtenTo are the directories in which files are replaced or removed at any time.
func (r *runFlags) writtenTo() []string {
	return []string{r.stateDir, filepath.Dir(r.subnetFile), filepath.Dir(r.control)}
}

func tryRead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

func tryWrite(dir string) error {
	f, err := os.CreateTemp(dir, ".muslin-try-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// privilegeStatus is what this process may do now. Until it has given up the rest, nothing is kept for a
// reason.
func privilegeStatus(kept reasons, keptErr error) control.PrivilegeStatus {
	s := control.PrivilegeStatus{UID: os.Geteuid(), Capabilities: []control.CapabilityStatus{}}
	if keptErr != nil {
		s.Error = keptErr.Error()
	}
	now, err := privilege.Now()
	if err != nil {
		s.Error = err.Error()
		return s
	}
	s.NoNewPrivs = now.NoNewPrivs
	for _, c := range now.Permitted.List() {
		s.Capabilities = append(s.Capabilities, control.CapabilityStatus{Name: privilege.Name(c), Reason: kept[c]})
	}
	return s
}
