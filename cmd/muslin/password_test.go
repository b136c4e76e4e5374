package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

const secret = "pass word=with --etcd-password"

// TestMain lets TestTakePassword run this binary as a process that has the password on its command line or in
// its environment.
func TestMain(m *testing.M) {
	if os.Getenv("MUSLIN_PASSWORD_HELPER") == "" {
		os.Exit(m.Run())
	}
	if err := showProcess(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// showProcess takes the password as the daemon does, and prints what others can then read of this process.
func showProcess(args []string) error {
	var s storeFlags
	flags := pflag.NewFlagSet("muslin", pflag.ContinueOnError)
	s.register(flags)
	if err := errors.Join(flags.Parse(args), flagsFromEnv(flags, os.LookupEnv)); err != nil {
		return err
	}
	if err := s.takePassword(slog.New(slog.NewTextHandler(os.Stdout, nil))); err != nil {
		return err
	}
	for _, name := range []string{"cmdline", "environ"} {
		content, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			return err
		}
		fmt.Printf("%s: |%s\n", name, strings.ReplaceAll(string(content), "\x00", "|"))
	}
	child, err := exec.Command("env").Output()
	if err != nil {
		return err
	}
	fmt.Printf("env of a child: %s\n", child)
	if s.password != secret {
		return errors.New("the daemon has another password")
	}
	return nil
}

func TestTakePassword(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		args, env []string
		warns     bool
	}{
		{name: "flag with an equals sign", args: []string{"--etcd-password=" + secret, "--etcd-username=x"}, warns: true},
		{name: "flag and value", args: []string{"--etcd-username", "x", "--etcd-password", secret}, warns: true},
		{name: "our variable", env: []string{"MUSLIN_ETCD_PASSWORD=" + secret}},
		{name: "flannel's variable", env: []string{"FLANNELD_ETCD_PASSWORD=" + secret}},
		{name: "all of them", args: []string{"--etcd-password", secret}, env: []string{"MUSLIN_ETCD_PASSWORD=" + secret, "FLANNELD_ETCD_PASSWORD=" + secret}, warns: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command(self, append([]string{"--etcd-prefix=/stays"}, test.args...)...)
			cmd.Env = append(append([]string{"MUSLIN_PASSWORD_HELPER=1", "PATH=" + os.Getenv("PATH"), "BEFORE=stays"}, test.env...), "AFTER=stays")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v:\n%s", err, out)
			}
			text := string(out)
			if strings.Contains(text, "pass word") {
				t.Errorf("the password shows:\n%s", text)
			}
			if got := strings.Contains(text, "process list"); got != test.warns {
				t.Errorf("a warning: %t, want %t:\n%s", got, test.warns, text)
			}
			for _, stays := range []string{"|BEFORE=stays|", "|AFTER=stays|", "|--etcd-prefix=/stays|"} {
				if !strings.Contains(text, stays) {
					t.Errorf("%q was wiped as well:\n%s", stays, text)
				}
			}
		})
	}
}

func TestPasswordFile(t *testing.T) {
	discard := slog.New(slog.NewTextHandler(io.Discard, nil))
	path := filepath.Join(t.TempDir(), "password")
	write := func(content string, mode os.FileMode) {
		t.Helper()
		os.Remove(path)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for content, want := range map[string]string{"one": "one", "one\n": "one", "one\r\n": "one", " two words \n": " two words "} {
		write(content, 0o600)
		s := storeFlags{passwordFile: path}
		if err := s.takePassword(discard); err != nil || s.password != want {
			t.Errorf("%q: %q, %v; want %q", content, s.password, err, want)
		}
	}
	write("one", 0o644)
	var log bytes.Buffer
	s := storeFlags{passwordFile: path}
	if err := s.takePassword(slog.New(slog.NewTextHandler(&log, nil))); err != nil || !strings.Contains(log.String(), path) || strings.Contains(log.String(), "one ") {
		t.Errorf("a file that everybody may read: %v, log %q", err, log.String())
	}
	write("\n", 0o600)
	for name, s := range map[string]storeFlags{
		"empty":       {passwordFile: path},
		"not there":   {passwordFile: path + ".not"},
		"given twice": {passwordFile: path, password: "x"},
	} {
		if err := s.takePassword(discard); err == nil || !strings.Contains(err.Error(), "--etcd-password-file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
