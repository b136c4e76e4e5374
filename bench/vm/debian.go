//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// suites are the Debian releases that have a kernel, the first of them that the mirror still carries to be
// taken. Kernels go from the oldest to the newest.
var suites = []struct {
	kernel string
	suites []string
}{
	{"5.10", []string{"bullseye"}},
	{"6.1", []string{"bookworm"}},
	{"6.12", []string{"trixie", "bookworm-backports"}},
}

func kernelNames() []string {
	var names []string
	for _, s := range suites {
		names = append(names, s.kernel)
	}
	return names
}

func suitesOf(kernel string) []string {
	for _, s := range suites {
		if s.kernel == kernel {
			return s.suites
		}
	}
	return nil
}

// kernel is an unpacked kernel package.
type kernel struct {
	release string // as uname -r prints it
	version string // of the package
	vmlinuz string // path
	modules string // directory: lib/modules/RELEASE
}

// fetchKernel fetches a kernel package into dir and unpacks it, unless that was done before.
func fetchKernel(ctx context.Context, name, dir string) (kernel, error) {
	if k, err := unpacked(dir); err == nil {
		return k, nil
	}
	mirror, err := ownMirror(ctx)
	if err != nil {
		return kernel{}, err
	}
	var failures []error
	for _, suite := range suitesOf(name) {
		fmt.Printf("fetching the kernel of Debian %s\n", suite)
		if err := fetchFrom(ctx, mirror, suite, name, dir); err != nil {
			failures = append(failures, fmt.Errorf("from %s: %w", suite, err))
			continue
		}
		return unpacked(dir)
	}
	return kernel{}, fmt.Errorf("fetch a kernel package: %w", errors.Join(failures...))
}

// unpacked finds the kernel below dir.
func unpacked(dir string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "package", "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("%d kernels below %s, want one", len(images), dir)
	}
	version, err := os.ReadFile(filepath.Join(dir, "version"))
	if err != nil {
		return kernel{}, err
	}
	_, release, _ := strings.Cut(filepath.Base(images[0]), "-")
	modules := filepath.Join(dir, "package", "lib", "modules", release)
	if _, err := os.Stat(modules); err != nil { // from trixie on
		modules = filepath.Join(dir, "package", "usr", "lib", "modules", release)
	}
	return kernel{release: release, version: strings.TrimSpace(string(version)), vmlinuz: images[0], modules: modules}, nil
}

// ownMirror is where this machine's apt has Debian's main archive from.
func ownMirror(ctx context.Context) (string, error) {
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	if mirror := parseTargets(out); mirror != "" {
		return mirror, nil
	}
	return "", errors.New("apt on this machine knows no mirror of Debian's main archive: run this on Debian, after `apt-get update`")
}

// parseTargets takes the first archive that is neither the security archive nor somebody else's.
func parseTargets(out string) string {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "Debian" && f[1] == "main" && !strings.Contains(f[2], "security") {
			return f[2]
		}
	}
	return ""
}

// cloudKernel is the package that depends on the newest kernel for virtual machines: no firmware, few drivers.
const cloudKernel = "linux-image-cloud-amd64"

// fetchFrom downloads and unpacks the kernel of one suite, by an apt that has its own sources, lists and cache
// and changes nothing of the machine's.
func fetchFrom(ctx context.Context, mirror, suite, series, dir string) error {
	a, err := newApt(filepath.Join(dir, "apt"), mirror, suite)
	if err != nil {
		return err
	}
	if err := a.run(ctx, "apt-get", "update", "-q"); err != nil {
		return err
	}
	shown, err := output(ctx, "apt-cache", a.args("show", "--no-all-versions", cloudKernel)...)
	if err != nil {
		return err
	}
	pkg, version := parsePackage(shown)
	if !strings.HasPrefix(version, series+".") {
		return fmt.Errorf("%s is %q %s there, not %s", cloudKernel, pkg, version, series)
	}
	if err := os.RemoveAll(filepath.Join(dir, "package")); err != nil {
		return err
	}
	for _, stale := range []string{"*.deb", "version"} {
		old, _ := filepath.Glob(filepath.Join(dir, stale))
		for _, path := range old {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	if err := a.run(ctx, "apt-get", "download", pkg); err != nil {
		return err
	}
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("download of %s: %d packages came, want one", pkg, len(debs))
	}
	if _, err := output(ctx, "dpkg-deb", "-x", debs[0], filepath.Join(dir, "package")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "version"), []byte(version+"\n"), 0o644)
}

// parsePackage reads, from what apt-cache shows of cloudKernel, the package that it depends on and the version.
func parsePackage(shown string) (pkg, version string) {
	for line := range strings.Lines(shown) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), ": "); key {
		case "Depends":
			pkg, _, _ = strings.Cut(value, " ")
		case "Version":
			version = value
		}
	}
	return pkg, version
}

// apt is apt with a state of its own.
type apt struct{ dir string }

// keyring holds the keys of Debian's releases; its package is part of every Debian.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

func newApt(dir, mirror, suite string) (*apt, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	a := &apt{dir}
	for _, sub := range []string{"parts", "state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	source := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, suite)
	return a, os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(source), 0o644)
}

func (a *apt) args(args ...string) []string {
	return append([]string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"),
		"-o", "Dir::Etc::sourceparts=" + filepath.Join(a.dir, "parts"),
		"-o", "Dir::State=" + filepath.Join(a.dir, "state"),
		"-o", "Dir::State::status=/dev/null",
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-o", "APT::Sandbox::User=root", // the directory may be one that others cannot enter
	}, args...)
}

func (a *apt) run(ctx context.Context, command string, args ...string) error {
	cmd := exec.CommandContext(ctx, command, a.args(args...)...)
	cmd.Dir = filepath.Dir(a.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", command, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// output is the standard output of a command; an error has what it said on standard error.
func output(ctx context.Context, command string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, command, args...).Output()
	if err != nil {
		said := ""
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			said = ": " + strings.TrimSpace(string(exit.Stderr))
		}
		return "", fmt.Errorf("%s: %w%s", command, err, said)
	}
	return string(out), nil
}
