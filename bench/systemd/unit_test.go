//go:build linux

package systemd

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// maxExposure is systemd's figure for the unit that must not be exceeded, of 10; docs/containers.md has it.
const maxExposure = 1.7

// What systemd makes of the installed unit: no line that it does not understand, and few rights.
//
//	h1 (systemd)
func TestUnit(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "systemd-analyze")
	m := startSystemd(t, labtest.NewLab(t, 1).Host(1))
	if out := m.do(t, "systemd-analyze", "verify", "muslin.service"); strings.TrimSpace(out) != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	out := m.do(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "/usr/local/lib/systemd/system/muslin.service")
	found := regexp.MustCompile(`Overall exposure level for muslin.service: ([0-9.]+)`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("no figure in\n%s", out)
	}
	if figure, err := strconv.ParseFloat(found[1], 64); err != nil || figure > maxExposure {
		t.Errorf("exposure %s, %v; want %.1f at most:\n%s", found[1], err, maxExposure, out)
	}
	t.Log(found[0])
}

// make install and make uninstall, at another place than usual.
func TestInstall(t *testing.T) {
	lab.RequireTool(t, "make")
	dir := t.TempDir()
	run := func(target string) map[string]os.FileMode {
		t.Helper()
		command := exec.Command("make", "-s", "-C", "../..", target, "DESTDIR="+dir, "PREFIX=/opt/muslin", "BINARY="+labtest.Bin)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, out)
		}
		modes := make(map[string]os.FileMode)
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			name, _ := filepath.Rel(dir, path)
			modes[name] = info.Mode().Perm()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return modes
	}
	installed := run("install")
	want := map[string]os.FileMode{
		"bin/muslin":                        0o755,
		"lib/systemd/system/muslin.service": 0o644,
		"lib/sysusers.d/muslin.conf":        0o644,
		"lib/tmpfiles.d/muslin.conf":        0o644,
		"share/doc/muslin/muslin.env":       0o644,
	}
	for name, mode := range want {
		if got := installed["opt/muslin/"+name]; got != mode {
			t.Errorf("%s has mode %o, want %o", name, got, mode)
		}
	}
	if len(installed) != len(want) {
		t.Errorf("installed are %v", installed)
	}
	unit, err := os.ReadFile(filepath.Join(dir, "opt/muslin/lib/systemd/system/muslin.service"))
	if want := "\nExecStart=/opt/muslin/bin/muslin run\n"; err != nil || !strings.Contains(string(unit), want) {
		t.Errorf("%v, no %q in the unit:\n%s", err, want, unit)
	}
	if left := run("uninstall"); len(left) > 0 {
		t.Errorf("make uninstall left %v", left)
	}
}
