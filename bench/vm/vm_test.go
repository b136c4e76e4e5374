//go:build linux

package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// What the archive holds cpio(1) gives back: names, modes, contents of every length modulo four.
func TestArchive(t *testing.T) {
	t.Parallel()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is not installed; `make deps-vm` brings it")
	}
	tr := &tree{files: map[string]source{
		"init":         {content: []byte("#!/bin/sh\n"), mode: modeProgram},
		"etc/empty":    {mode: modeFile},
		"etc/a":        {content: []byte("1"), mode: modeFile},
		"etc/ab":       {content: []byte("12"), mode: modeFile},
		"etc/abc":      {content: []byte("123"), mode: modeFile},
		"usr/bin/copy": {path: "/proc/self/exe", mode: modeProgram},
	}}
	var image bytes.Buffer
	w := bufio.NewWriter(&image)
	if err := tr.write(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(busybox, "cpio", "-i", "-d")
	cmd.Dir, cmd.Stdin = dir, &image
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for name, s := range tr.files {
		want := s.content
		if s.path != "" {
			if want, err = os.ReadFile(s.path); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || uint32(info.Mode().Perm()) != s.mode&0o777 {
			t.Errorf("%s: %v, %v, want mode %o", name, info, err, s.mode&0o777)
		}
	}
}

func TestReadResult(t *testing.T) {
	t.Parallel()
	guest := strings.ReplaceAll(`== kernel 5.10.0-32-cloud-amd64
== features
{"udp_max_segments": 64, "features": [
  {"name": "mmsg", "state": "on"}, {"name": "tun-uso", "state": "off", "reason": "needs Linux 6.2"}]}
== suite
=== RUN   TestA
--- PASS: TestA (1.00s)
    --- FAIL: TestB/one (0.00s)
--- FAIL: TestB (2.00s)
--- SKIP: TestC (0.00s)
== uptime 90
== status 1
`, "\n", "\r\n")
	r, err := readResult([]byte(guest))
	if err != nil {
		t.Fatal(err)
	}
	want := result{
		release: "5.10.0-32-cloud-amd64", segments: 64, status: 1, guest: 90 * time.Second,
		features: []feature{{Name: "mmsg", State: "on"}, {Name: "tun-uso", State: "off", Reason: "needs Linux 6.2"}},
		pass:     1, fail: 1, skip: 1, failed: []string{"TestB"}, skipped: []string{"TestC"},
	}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got\n%+v\nwant\n%+v", r, want)
	}
	if r.passed() {
		t.Error("a suite that failed has passed")
	}
	for name, cut := range map[string]string{
		"no status": guest[:strings.Index(guest, "== status")], "nothing": "", "no features": strings.Replace(guest, `"features":`, "features", 1),
	} {
		if r, err := readResult([]byte(cut)); err == nil {
			t.Errorf("%s: %+v and no error", name, r)
		}
	}
}

// A suite of which nothing ran has not passed, whatever its status.
func TestNothingRan(t *testing.T) {
	t.Parallel()
	if (result{status: 0}).passed() {
		t.Error("passed without a test")
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	got := markdown([]result{
		{kernel: "5.10", version: "5.10.223-1", release: "5.10.0-32", took: 61 * time.Second, guest: 30 * time.Second, segments: 64, pass: 39, skipped: []string{"TestC"},
			features: []feature{{Name: "mmsg", State: "on"}, {Name: "tun-uso", State: "off"}}},
		{kernel: "6.12", version: "6.12.117-1", release: "6.12.117", took: time.Hour, segments: 128, pass: 38, failed: []string{"TestB"},
			features: []feature{{Name: "mmsg", State: "on"}, {Name: "tun-uso", State: "on"}}},
	})
	want := `| Feature | 5.10 | 6.12 |
| --- | --- | --- |
| ` + "`mmsg`" + ` | on | on |
| ` + "`tun-uso`" + ` | off | on |
| datagrams in one piece | 64 | 128 |

| Kernel | Package | Tests passed | Failed | Left out | Duration | By the guest's clock |
|---|---|---|---|---|---|---|
| 5.10.0-32 | 5.10.223-1 | 39 | none | TestC | 1m1s | 30s |
| 6.12.117 | 6.12.117-1 | 38 | TestB | none | 1h0m0s | 0s |
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	targets := "Other main http://other.example/debian/\nDebian main http://mirror.example/debian-security/\nDebian contrib http://mirror.example/debian/\nDebian main http://mirror.example/debian/\n"
	if got := parseTargets(targets); got != "http://mirror.example/debian/" {
		t.Errorf("mirror %q", got)
	}
	if got := parseTargets("Ubuntu main http://mirror.example/ubuntu/\n"); got != "" {
		t.Errorf("mirror of another distribution %q", got)
	}
	pkg, version := parsePackage("Package: linux-image-cloud-amd64\nVersion: 5.10.223-1\nDepends: linux-image-5.10.0-32-cloud-amd64 (= 5.10.223-1)\n")
	if pkg != "linux-image-5.10.0-32-cloud-amd64" || version != "5.10.223-1" {
		t.Errorf("package %q, version %q", pkg, version)
	}
	ldd := "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n"
	if got := libraries(ldd); !slices.Equal(got, []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}) {
		t.Errorf("libraries %q", got)
	}
	dep := "kernel/net/a.ko: kernel/lib/b.ko kernel/lib/c.ko\nkernel/lib/b.ko: kernel/lib/c.ko\nkernel/lib/c.ko:\nkernel/fs/d.ko:\nkernel/drivers/net/e.ko:\n"
	if got := wantedModules(dep); !slices.Equal(got, []string{"kernel/drivers/net/e.ko", "kernel/lib/b.ko", "kernel/lib/c.ko", "kernel/net/a.ko"}) {
		t.Errorf("modules %q", got)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o, err := parseOptions([]string{"--dir", dir, "--bin", "/proc/self/exe", "5.10", "6.12"})
	if err != nil || !slices.Equal(o.kernels, []string{"5.10", "6.12"}) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"--dir", dir, "--bin", "/proc/self/exe"}, {"--dir", dir, "--bin", "/proc/self/exe", "2.4"}, {"--dir", dir, "--bin", "/nowhere", "5.10"}} {
		if _, err := parseOptions(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
