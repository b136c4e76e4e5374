package main

import (
	"bytes"
	"context"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/control"
)

// typed runs a command line as main does, and returns what it printed and the exit status of its error.
func typed(args ...string) (out string, status int, err error) {
	root, buf := newRootCommand(), new(bytes.Buffer)
	root.SetArgs(args)
	root.SetOut(buf)
	root.SetErr(buf)
	cmd, err := root.ExecuteContextC(context.Background())
	if err != nil {
		status = failed(cmd)
	}
	return buf.String(), status, err
}

func TestWrongCommandLines(t *testing.T) {
	for _, c := range []struct {
		line   string
		status int
		want   []string
	}{
		{"statsu", 1, []string{`"statsu"`, "did you mean `muslin status`?", "`muslin --help`"}},
		{"leases lst", 1, []string{"did you mean `muslin leases list`?"}},
		{"xyzzy", 1, []string{"`muslin --help` lists them"}},
		{"help statsu", 1, []string{"did you mean `muslin status`?"}},
		{"completion sh", 1, []string{"`muslin completion bash|zsh|fish`", `"sh"`}},
		{"status now", 1, []string{"muslin status takes no arguments", `"now"`}},
		{"route", 1, []string{"`muslin route ADDRESS`", "got nothing"}},
		{"trace 10.0.0.1", 1, []string{"`muslin trace SRC DST [icmp|tcp|udp [PORT]]`", `got "10.0.0.1"`}},
		{"run --netwrok 10.244.0.0/16", 1, []string{"did you mean --network?", "`muslin run --help`"}},
		{"run -x", 1, []string{"'x' in -x", "`muslin run --help`"}},
		{"status --peers many", 1, []string{`--peers "many": want a number`}},
		{"ping 10.0.0.1 -i 5", 1, []string{`--interval "5": want a time such as`}},
		{"bench link --port 70000", 1, []string{`--port "70000": want a number from 0 to 65535`}},
		{"run --replace=maybe", 1, []string{"want true or false"}},
		// Of doctor 1 and 2 say what was found.
		{"doctor now", 3, []string{"takes no arguments"}},
		{"doctor --outptu json", 3, []string{"did you mean --output?"}},
		{"doctor --output yaml", 3, []string{"want text or json"}},
		{"doctor --yes", 3, []string{"--fix"}},
	} {
		_, status, err := typed(strings.Fields(c.line)...)
		if err == nil || status != c.status {
			t.Errorf("`muslin %s`: %v with status %d, want an error with %d", c.line, err, status, c.status)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("`muslin %s` says %q, which lacks %q", c.line, err, w)
			}
		}
	}
	t.Setenv("MUSLIN_FIX", "perhaps")
	if _, status, err := typed("doctor"); err == nil || status != 3 {
		t.Errorf("a wrong variable: %v with status %d, want an error with 3", err, status)
	}
}

// TestHelpOfEveryCommand: every command explains itself, in the order of need, and by an example where it takes anything.
func TestHelpOfEveryCommand(t *testing.T) {
	all, _, _ := typed("--help")
	last := 0
	for _, name := range []string{"run", "status", "doctor", "trace", "rescue", "leases", "demo"} {
		i := strings.Index(all, "\n  "+name+" ")
		if i <= last {
			t.Errorf("%q does not stand in its place in `muslin --help`:\n%s", name, all)
		}
		last = i
	}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		words := append([]string{"help"}, strings.Fields(c.CommandPath())[1:]...)
		out, _, err := typed(words...)
		if err != nil || c.Runnable() != strings.Contains(out, "Usage:") || c.Short == "" {
			t.Errorf("`muslin %s`: %v\n%s", strings.Join(words, " "), err, out)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand())
	page, _, err := typed("help", "emergency")
	for _, heading := range []string{"# Emergency", "## What is wrong", "## Traffic back now", "## Where does my packet die"} {
		if err != nil || !strings.Contains(page, heading+"\n") || strings.Contains(page, "](") {
			t.Errorf("`muslin help emergency`, %v: want %q and no links in it:\n%s", err, heading, page)
		}
	}
	if out, _, err := typed("--version"); err != nil || out != versionLine()+"\n" {
		t.Errorf("--version: %q, %v; want %q", out, err, versionLine())
	}
}

func TestCompletion(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := listenControl(socket)
	if err != nil {
		t.Fatal(err)
	}
	status := &control.Status{Peers: []control.PeerStatus{{Subnet: "10.244.15.0/24", PublicIP: "192.0.2.2"}}}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	mux := http.NewServeMux()
	mux.HandleFunc(control.StatusPath, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, status) })
	go func() { served <- serveHTTP(ctx, l, mux) }()
	defer func() { cancel(); <-served }()

	for line, want := range map[string]string{
		"sta":                            "status",
		"help rou":                       "route",
		"leases li":                      "list",
		"ping --control " + socket + " ": "10.244.15.0/24",
		"capture --control " + socket + " --peer ": "10.244.15.0/24",
		"trace 10.244.1.2 10.244.3.7 ":             "tcp",
		"status --output ":                         "json",
		"top --sort ":                              "loss",
		"doctor --fi":                              "--fix",
	} {
		out, _, err := typed(append([]string{"__complete"}, strings.Split(line, " ")...)...)
		var offered []string
		for l := range strings.Lines(out) {
			word, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
			offered = append(offered, word)
		}
		if err != nil || !slices.Contains(offered, want) {
			t.Errorf("`muslin %s` and Tab: %v, %v; want %s", line, offered, err, want)
		}
	}
}
