package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"muslin/cmd/muslin/rescue"
)

// settingsFile is where the systemd unit has the daemon's settings from (docs/examples/muslin.service).
const settingsFile = "/etc/muslin.env"

// startedWith finds out what a daemon was started with, by its process: command line and environment, and of several
// networks what its file says of the one that is named. With no process it looks for flanneld's, and else into the file of
// the systemd unit. nil: nothing is known. why says what could not be learnt of a daemon that runs.
func startedWith(pid int, network string) (flags *runFlags, why string) {
	if pid == 0 {
		running := rescue.FindFlanneld()
		if len(running) == 0 {
			return settings(), ""
		}
		pid = running[0].PID
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(args) == 0 {
		return nil, fmt.Sprintf("how process %d was started cannot be seen: run as root, or give this command the daemon's flags", pid)
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		why = fmt.Sprintf("the environment of process %d cannot be seen: run as root, or give this command the daemon's flags", pid)
	}
	p := otherProcess{pid: pid}
	flags, err = p.flags(strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00"), strings.Split(string(environ), "\x00"), network)
	if err != nil {
		return nil, fmt.Sprintf("how process %d was started cannot be read: %v", pid, err)
	}
	if flags.store.username != "" && flags.store.password == "" {
		why = "the daemon's etcd password is not to be seen: give --etcd-password-file"
	}
	return flags, why
}

type otherProcess struct{ pid int }

// flags reads a command line of muslin run, or of flanneld, whose flags of these names mean the same.
func (p otherProcess) flags(args, environ []string, network string) (*runFlags, error) {
	flags, set := new(runFlags), pflag.NewFlagSet("run", pflag.ContinueOnError)
	set.ParseErrorsAllowlist.UnknownFlags = true
	set.Usage = func() {}
	flags.register(set)
	rest := args[1:]
	if i := slices.Index(rest, "run"); i >= 0 {
		rest = rest[i+1:]
	}
	for i, a := range rest { // flanneld has them with one dash as well
		if strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--") && len(a) > 2 {
			rest[i] = "-" + a
		}
	}
	if err := set.Parse(rest); err != nil {
		return nil, err
	}
	if err := flagsFromEnv(set, func(name string) (string, bool) {
		for _, e := range environ {
			if key, value, ok := strings.Cut(e, "="); ok && key == name {
				return value, true
			}
		}
		return "", false
	}); err != nil {
		return nil, err
	}
	if err := goOn(set, flags.stateDir); err != nil { // in flannel's place it has found out most of them
		return nil, err
	}
	p.find(&flags.config)
	if flags.config != "" {
		data, err := os.ReadFile(flags.config)
		if err != nil {
			return nil, err
		}
		all, err := parseNetworks(&processSettings{flags: flags, set: set}, data)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(all, func(s *networkSettings) bool { return s.name == network })
		if i < 0 {
			return nil, fmt.Errorf("%s has no network %q", flags.config, network)
		}
		flags = all[i].flags
	}
	for _, path := range []*string{&flags.store.caFile, &flags.store.certFile, &flags.store.keyFile, &flags.store.passwordFile, &flags.peersFile, &flags.netConfig, &flags.stateDir, &flags.subnetFile} {
		p.find(path)
	}
	if flags.store.passwordFile != "" {
		content, _ := os.ReadFile(flags.store.passwordFile)
		flags.store.password = strings.TrimRight(string(content), "\r\n")
	}
	return flags, nil
}

// find makes a path of the process's one of ours: it may be relative, or of a container's files.
func (p otherProcess) find(path *string) {
	if *path == "" {
		return
	}
	if !filepath.IsAbs(*path) {
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid))
		*path = filepath.Join(cwd, *path)
	}
	if _, err := os.Stat(*path); err == nil {
		return
	}
	if inside := fmt.Sprintf("/proc/%d/root%s", p.pid, *path); exists(inside) {
		*path = inside
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// settings are those of the systemd unit; nil: there are none.
func settings() *runFlags {
	data, err := os.ReadFile(settingsFile)
	if err != nil {
		return nil
	}
	var environ []string
	for line := range bytes.Lines(data) {
		line := strings.TrimSpace(string(line))
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			environ = append(environ, strings.TrimSpace(key)+"="+cmp.Or(strings.Trim(strings.TrimSpace(value), `"'`), ""))
		}
	}
	flags, err := otherProcess{pid: os.Getpid()}.flags([]string{"muslin", "run"}, environ, "")
	if err != nil {
		return nil
	}
	return flags
}
