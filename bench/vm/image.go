//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

//go:embed init.sh
var initScript []byte

// tools are what the suite calls beside muslin, and what busybox has not got. They come from this machine.
var tools = []string{
	"bridge", "etcd", "etcdctl", "ethtool", "install", "ip", "iperf3", "iptables", "iptables-legacy", "iptables-nft",
	"ip6tables", "ip6tables-legacy", "ip6tables-nft", "modprobe", "nft", "nstat",
	"nsenter", "ping", "setpriv", "sockperf", "tc", "tcpdump", "tmux", "unshare", "wg", "wireguard-go",
}

// modules are loaded at the start: those that nothing asks the kernel for by itself, or that the suite wants to
// find. The others are there to be asked for, as on any Debian.
var modules = []string{"tun", "veth", "bridge", "vxlan", "nf_tables", "ip_tables", "sch_netem"}

// moduleTrees are the parts of a kernel package's modules that go into the guest; each is named below the
// directory "kernel". Modules elsewhere that one of these needs go along.
var moduleTrees = []string{"net", "drivers/net"}

// guest is what goes into the guest.
type guest struct {
	kernel kernel
	bin    string // muslin
	suite  string // the test binary
	run    string
	slow   int
	limit  time.Duration
}

// tree is a root filesystem in the making: the content of each file, or the file of this machine that it is a
// copy of, by its path without the leading slash.
type tree struct {
	files map[string]source
}

type source struct {
	path    string // of this machine; empty: content counts
	content []byte
	mode    uint32
}

// buildImage writes the guest's root filesystem to path.
func buildImage(ctx context.Context, path string, g guest) error {
	t := &tree{files: make(map[string]source)}
	if err := t.fill(ctx, g, filepath.Dir(path)); err != nil {
		return fmt.Errorf("make the guest's files: %w", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	return errors.Join(t.write(w), w.Flush(), f.Close())
}

func (t *tree) fill(ctx context.Context, g guest, scratch string) error {
	t.files["init"] = source{content: initScript, mode: modeProgram}
	t.files["usr/bin/muslin"] = source{path: g.bin, mode: modeProgram}
	t.files["usr/bin/e2e.test"] = source{path: g.suite, mode: modeProgram}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w: install busybox-static", err)
	}
	if out, err := exec.CommandContext(ctx, "ldd", busybox).Output(); err == nil && len(libraries(string(out))) > 0 {
		return errors.New("busybox is not static: install busybox-static")
	}
	t.files["bin/busybox"] = source{path: busybox, mode: modeProgram}
	// Debian's busybox, as a shell, prefers its own `ip` to every other.
	dash, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		return err
	}
	t.files["bin/sh"] = source{path: dash, mode: modeProgram}
	if err := t.addLibraries(ctx, dash); err != nil {
		return err
	}
	for _, name := range tools {
		if err := t.addTool(ctx, name); err != nil {
			return err
		}
	}
	if err := t.addPlugins(ctx); err != nil {
		return err
	}
	if err := t.addDocs(); err != nil {
		return err
	}
	for path, content := range t.settings(g) {
		t.files[path] = source{content: []byte(content), mode: modeFile}
	}
	return t.addModules(ctx, g.kernel, filepath.Join(scratch, "modules"))
}

// settings are the guest's configuration files.
func (t *tree) settings(g guest) map[string]string {
	quoted := "'" + strings.ReplaceAll(g.run, "'", `'\''`) + "'"
	return map[string]string{
		"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":         "root:x:0:\nnogroup:x:65534:\n",
		"etc/hosts":         "127.0.0.1 localhost\n",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
		"etc/modules":       strings.Join(modules, "\n") + "\n",
		// CI makes what is missing a failure, and so does MUSLIN_NETEM, rather than a test left out.
		"etc/muslin-vm": fmt.Sprintf("export CI=true MUSLIN_BIN=/usr/bin/muslin MUSLIN_SLOW=%d MUSLIN_NETEM=required MUSLIN_FIREWALLD=none\nLIMIT=%v RUN=%s\n",
			g.slow, g.limit, quoted),
	}
}

// addTool takes a program of this machine over, with the libraries that it is linked to. What alternatives(8)
// or a package made a link to another name keeps the name, by which such programs tell what they are to be.
func (t *tree) addTool(ctx context.Context, name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("%w: run `make deps-vm`", err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	t.files["usr/bin/"+name] = source{path: path, mode: modeProgram}
	return t.addLibraries(ctx, path)
}

func (t *tree) addLibraries(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, "ldd", path).CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("not a dynamic executable")) {
		return fmt.Errorf("ldd %s: %w: %s", path, err, out)
	}
	for _, library := range libraries(string(out)) {
		t.files[strings.TrimPrefix(library, "/")] = source{path: library, mode: modeProgram}
	}
	return nil
}

// libraries are the paths in what ldd prints: "name => /path (address)", or "/path (address)" of the loader.
func libraries(ldd string) []string {
	var paths []string
	for line := range strings.Lines(ldd) {
		for _, f := range strings.Fields(line) {
			if strings.HasPrefix(f, "/") && !strings.HasSuffix(f, ":") {
				paths = append(paths, f)
			}
		}
	}
	return paths
}

// addPlugins takes over what iptables loads by name.
func (t *tree) addPlugins(ctx context.Context) error {
	plugins, err := filepath.Glob("/usr/lib/*/xtables/*.so")
	if err != nil || len(plugins) == 0 {
		return errors.New("iptables' plugins (/usr/lib/*/xtables) are not there: run `make deps-vm`")
	}
	for _, path := range plugins {
		t.files[strings.TrimPrefix(path, "/")] = source{path: path, mode: modeFile}
	}
	return t.addLibraries(ctx, plugins[0])
}

// addDocs takes over the pages that tests hold to the code, where the suite looks for them: two directories above
// its own (init.sh).
func (t *tree) addDocs() error {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil || len(pages) == 0 {
		return errors.New("no pages in docs: run this in the project's directory")
	}
	for _, path := range pages {
		t.files["muslin/"+path] = source{path: path, mode: modeFile}
	}
	return nil
}

// addModules puts the kernel's modules for networks, and what they need, into the guest, unpacked and with a new
// list of dependencies. It assembles them in the directory scratch.
func (t *tree) addModules(ctx context.Context, k kernel, scratch string) error {
	defer os.RemoveAll(scratch)
	target := filepath.Join(scratch, "lib", "modules", k.release)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"cp", "-r", k.modules, target},
		{"find", target, "-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"},
		{"depmod", "-b", scratch, k.release},
	} {
		if _, err := output(ctx, command[0], command[1:]...); err != nil {
			return err
		}
	}
	list, err := os.ReadFile(filepath.Join(target, "modules.dep"))
	if err != nil {
		return err
	}
	for _, name := range wantedModules(string(list)) {
		if err := t.addContent(filepath.Join(target, name), filepath.Join("lib/modules", k.release, name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"modules.dep", "modules.dep.bin", "modules.alias", "modules.alias.bin", "modules.builtin", "modules.builtin.bin", "modules.symbols.bin", "modules.softdep"} {
		err := t.addContent(filepath.Join(target, name), filepath.Join("lib/modules", k.release, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// wantedModules reads modules.dep, "module: what it needs, all of it", and returns what moduleTrees takes.
func wantedModules(list string) []string {
	wanted := make(map[string]bool)
	for line := range strings.Lines(list) {
		name, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		if !slices.ContainsFunc(moduleTrees, func(tree string) bool { return strings.HasPrefix(name, "kernel/"+tree+"/") }) {
			continue
		}
		wanted[name] = true
		for _, n := range strings.Fields(needs) {
			wanted[n] = true
		}
	}
	return slices.Sorted(maps.Keys(wanted))
}

func (t *tree) addContent(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	t.files[to] = source{content: content, mode: modeFile}
	return nil
}

// write writes the files, and before them the directories that they are in.
func (t *tree) write(w *bufio.Writer) error {
	a := &archive{w: w}
	made := make(map[string]bool)
	for _, path := range slices.Sorted(maps.Keys(t.files)) {
		for i, c := range path {
			if dir := path[:i]; c == '/' && !made[dir] {
				made[dir] = true
				a.add(dir, modeDir, 0, nil)
			}
		}
		if err := t.files[path].write(a, path); err != nil {
			return err
		}
	}
	return a.close()
}

func (s source) write(a *archive, name string) error {
	if s.path == "" {
		a.add(name, s.mode, int64(len(s.content)), bytes.NewReader(s.content))
		return a.err
	}
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	a.add(name, s.mode, info.Size(), f)
	return a.err
}

// buildSuite builds the end-to-end tests as one static program.
func buildSuite(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", path, "muslin/bench/e2e")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the suite: %w: %s", err, out)
	}
	return nil
}
