//go:build linux

package main

import (
	"bufio"
	"bytes"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Read by the format's description, the archive has every name, mode and content, of every length modulo four, and
// each directory before what is in it. That the kernel reads it the same, every boot shows.
func TestArchive(t *testing.T) {
	t.Parallel()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
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
	var names []string
	modes, contents := make(map[string]uint64), make(map[string][]byte)
	for rest := image.Bytes(); len(rest) > 0; {
		field := func(i int) uint64 { // the header's numbers, counted from 0 behind the magic
			n, err := strconv.ParseUint(string(rest[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatalf("header %q: %v", rest[:110], err)
			}
			return n
		}
		if string(rest[:6]) != "070701" {
			t.Fatalf("magic %q", rest[:6])
		}
		nameEnd := 110 + int(field(11))
		name := string(rest[110 : nameEnd-1])
		from := (nameEnd + 3) / 4 * 4
		to := from + int(field(6))
		names = append(names, name)
		modes[name], contents[name] = field(1), rest[from:to]
		rest = rest[min((to+3)/4*4, len(rest)):]
	}
	want := []string{"etc", "etc/a", "etc/ab", "etc/abc", "etc/empty", "init", "usr", "usr/bin", "usr/bin/copy", "TRAILER!!!"}
	if !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
	for name, s := range tr.files {
		content := s.content
		if s.path != "" {
			content = self
		}
		if !bytes.Equal(contents[name], content) || modes[name] != uint64(s.mode) {
			t.Errorf("%s: %d bytes, mode %o, want %d, %o", name, len(contents[name]), modes[name], len(content), s.mode)
		}
	}
	if modes["usr/bin"] != modeDir {
		t.Errorf("a directory has mode %o", modes["usr/bin"])
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
