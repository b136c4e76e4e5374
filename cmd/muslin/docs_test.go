package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/health"
	"muslin/cmd/muslin/metrics"
	"muslin/cmd/muslin/top"
	"muslin/lease"
	"muslin/tunnel"
)

// What docs/ says is held to the code here.

const projectRoot = "../.."

func readDoc(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(projectRoot, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// section is the text under the heading (without its #s) up to the next one of the same or a higher level.
func section(t *testing.T, doc, heading string) string {
	t.Helper()
	var out []string
	level := 0
	fence := false
	for line := range strings.Lines(doc) {
		if strings.HasPrefix(line, "```") {
			fence = !fence
		}
		marks := len(line) - len(strings.TrimLeft(line, "#"))
		if !fence && marks > 0 {
			if level > 0 && marks <= level {
				break
			}
			if strings.TrimSpace(line[marks:]) == heading {
				level = marks
			}
		}
		if level > 0 {
			out = append(out, line)
		}
	}
	if len(out) < 2 {
		t.Fatalf("no section %q", heading)
	}
	return strings.Join(out, "")
}

// tableRows are the cells of every table row in the text, without headings and rulers.
func tableRows(text string) [][]string {
	var rows [][]string
	lines := slices.Collect(strings.Lines(text))
	for i, line := range lines {
		line = strings.TrimSpace(line)
		heading := i+1 < len(lines) && strings.HasPrefix(lines[i+1], "|---")
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || heading {
			continue
		}
		var cells []string
		for _, cell := range strings.Split(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		rows = append(rows, cells)
	}
	return rows
}

var quotedWord = regexp.MustCompile("`([^`]+)`")

func quoted(cell string) []string {
	var out []string
	for _, m := range quotedWord.FindAllStringSubmatch(cell, -1) {
		out = append(out, m[1])
	}
	return out
}

// same fails with what is only in one of the two.
func same(t *testing.T, what string, inDocs, inCode []string) {
	t.Helper()
	if len(inCode) == 0 {
		t.Fatalf("%s: nothing to compare with", what)
	}
	for _, s := range inCode {
		if !slices.Contains(inDocs, s) {
			t.Errorf("%s: %q is not in the docs", what, s)
		}
	}
	for i, s := range inDocs {
		if !slices.Contains(inCode, s) {
			t.Errorf("%s: the docs have %q, the code does not", what, s)
		}
		if slices.Contains(inDocs[:i], s) {
			t.Errorf("%s: the docs have %q twice", what, s)
		}
	}
}

// commandFlags maps "muslin run" to its flags, those of its parents too. A hidden flag is for tests.
func commandFlags() map[string]map[string]*pflag.Flag {
	all := map[string]map[string]*pflag.Flag{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		flags := map[string]*pflag.Flag{}
		for _, set := range []*pflag.FlagSet{c.LocalFlags(), c.InheritedFlags()} {
			set.VisitAll(func(f *pflag.Flag) {
				if f.Name != "help" && !f.Hidden {
					flags[f.Name] = f
				}
			})
		}
		all[c.CommandPath()] = flags
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand())
	return all
}

func defaultInDocs(f *pflag.Flag) string {
	switch f.DefValue {
	case "", "[]":
		return "none"
	case "false":
		return "off"
	case "true":
		return "on"
	}
	return "`" + f.DefValue + "`"
}

// TestDocsListEveryFlag: the tables of docs/configuration.md have every flag of every command, with its
// variable and its default, and no other. Each heading names the commands that its tables are about.
func TestDocsListEveryFlag(t *testing.T) {
	commands := commandFlags()
	documented := map[string][]string{} // flags by command
	var about []string
	rows := 0
	for line := range strings.Lines(section(t, readDoc(t, "docs/configuration.md"), "Flags and environment")) {
		if strings.HasPrefix(line, "###") {
			about = quoted(line)
			for _, c := range about {
				if commands[c] == nil {
					t.Errorf("the heading %q names a command that is none", strings.TrimSpace(line))
				}
			}
		}
		if !strings.HasPrefix(line, "| `--") {
			continue
		}
		rows++
		row := tableRows(line)[0]
		names := quoted(row[0])
		name := strings.TrimPrefix(names[0], "--")
		variable := "MUSLIN_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if got := quoted(row[1]); !slices.Equal(got, []string{variable}) {
			t.Errorf("--%s: variable %v, want %s", name, got, variable)
		}
		if len(row) != 4 || row[3] == "" {
			t.Errorf("--%s has no meaning", name)
		}
		for _, c := range about {
			documented[c] = append(documented[c], name)
			f := commands[c][name]
			if f == nil {
				continue // reported below
			}
			if want := defaultInDocs(f); row[2] != want {
				t.Errorf("%s --%s: default %s in the docs, %s in the code", c, name, row[2], want)
			}
			if f.Shorthand != "" && !slices.Contains(names, "-"+f.Shorthand) {
				t.Errorf("%s --%s: its short form -%s is not in the docs", c, name, f.Shorthand)
			}
		}
	}
	if rows < 40 {
		t.Errorf("only %d rows found", rows)
	}
	for _, c := range slices.Sorted(maps.Keys(commands)) {
		inDocs := documented[c]
		if parent, _, ok := cutLast(c); ok { // what is said of "muslin leases" holds for "muslin leases list"
			inDocs = append(slices.Clone(inDocs), documented[parent]...)
		}
		if len(commands[c])+len(inDocs) > 0 {
			same(t, c, inDocs, slices.Collect(maps.Keys(commands[c])))
		}
	}
}

func cutLast(command string) (parent, last string, ok bool) {
	i := strings.LastIndex(command, " ")
	if i < 0 {
		return "", "", false
	}
	return command[:i], command[i+1:], true
}

// statusPaths are the fields of a JSON type, "peers[].subnet" for one in an array of objects.
func statusPaths(typ reflect.Type, prefix string) []string {
	var out []string
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		kind := typ.Field(i).Type
		path := prefix + name
		if kind.Kind() == reflect.Slice {
			kind, path = kind.Elem(), path+"[]"
		}
		switch {
		case typ.Field(i).Anonymous:
			out = append(out, statusPaths(kind, prefix)...)
		case kind.Kind() == reflect.Struct && kind != reflect.TypeFor[time.Time]():
			out = append(out, statusPaths(kind, path+".")...)
		default:
			out = append(out, strings.TrimSuffix(path, "[]"))
		}
	}
	return out
}

func TestDocsListEveryStatusField(t *testing.T) {
	var inDocs []string
	for _, row := range tableRows(section(t, readDoc(t, "docs/configuration.md"), "Status")) {
		inDocs = append(inDocs, quoted(row[0])...)
		if row[1] == "" {
			t.Errorf("%s has no type", row[0])
		}
	}
	same(t, "status field", inDocs, statusPaths(reflect.TypeFor[control.Status](), ""))
}

// findingID is where the doctor's code names a finding.
var findingID = regexp.MustCompile(`(?:\bID: *|\bID(?:, f\.\w+)* = |\bid :?= |\b(?:broken|verdict|what|odd|finding)\()"([a-z]+(?:-[a-z]+)+)"`)

func TestDocsListEveryFinding(t *testing.T) {
	files, err := filepath.Glob("doctor/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	var inCode []string
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range findingID.FindAllStringSubmatch(string(data), -1) {
			if id := m[1]; !strings.HasSuffix(path, "_test.go") && !slices.Contains(inCode, id) {
				inCode = append(inCode, id)
			}
		}
	}
	var inDocs []string
	for _, row := range tableRows(section(t, readDoc(t, "docs/doctor.md"), "What it finds")) {
		inDocs = append(inDocs, quoted(row[0])...)
	}
	same(t, "finding", inDocs, inCode)
}

// TestDocsListEveryTopField: docs/top.md has those that are not as in the status, and every column's name.
func TestDocsListEveryTopField(t *testing.T) {
	doc := readDoc(t, "docs/top.md")
	var inDocs, inCode, columns []string
	for _, row := range tableRows(section(t, doc, "For scripts")) {
		inDocs = append(inDocs, quoted(row[0])...)
	}
	asStatus := statusPaths(reflect.TypeFor[control.Status](), "")
	for _, path := range statusPaths(reflect.TypeFor[top.Report](), "") {
		if !slices.Contains(asStatus, path) || strings.HasPrefix(path, "queues[]") {
			inCode = append(inCode, path)
		}
	}
	same(t, "field of top", inDocs, inCode)
	for _, row := range tableRows(section(t, doc, "Peers")) {
		columns = append(columns, quoted(row[0])...)
	}
	same(t, "column of top", columns, top.Columns())
}

func TestDocsListEveryRouteField(t *testing.T) {
	text := section(t, readDoc(t, "docs/configuration.md"), "Which way a packet goes")
	var inDocs []string
	for _, row := range tableRows(text) {
		inDocs = append(inDocs, quoted(row[0])...)
		if row[1] == "" {
			t.Errorf("%s has no type", row[0])
		}
	}
	same(t, "field of the route", inDocs, statusPaths(reflect.TypeFor[control.RouteAnswer](), ""))
}

func TestDocsListEveryDropReason(t *testing.T) {
	var inDocs, inCode []string
	for _, row := range tableRows(readDoc(t, "docs/drops.md")) {
		inDocs = append(inDocs, quoted(row[0])...)
		if len(row) != 3 || row[1] == "" || row[2] == "" {
			t.Errorf("%s: want what happened and what to do", row[0])
		}
	}
	for _, r := range tunnel.Reasons() {
		inCode = append(inCode, r.String())
	}
	same(t, "drop reason", inDocs, inCode)
	if !slices.Equal(inDocs, inCode) {
		t.Errorf("the reasons stand in another order than in tunnel/drop.go:\n%v\n%v", inDocs, inCode)
	}
}

// TestDocsListEveryMetric: docs/metrics.md has each with its type and its labels, and no other.
func TestDocsListEveryMetric(t *testing.T) {
	doc := readDoc(t, "docs/metrics.md")
	var inDocs, inCode []string
	for _, row := range tableRows(section(t, doc, "The metrics") + section(t, doc, "Peers")) {
		if len(row) != 4 || !strings.HasPrefix(row[0], "`muslin_") {
			continue
		}
		inDocs = append(inDocs, fmt.Sprintf("%s %s %v", quoted(row[0])[0], row[1], quoted(row[2])))
		if row[3] == "" {
			t.Errorf("%s has no meaning", row[0])
		}
	}
	for _, f := range metrics.Families() {
		inCode = append(inCode, fmt.Sprintf("%s %s %v", f.Name, f.Kind, f.Labels))
	}
	same(t, "metric", inDocs, inCode)
}

// TestDocsDashboardAndAlerts: the dashboard and the rules ask for metrics that there are, and the dashboard for all of them; every
// alert has a test, and stands in docs/metrics.md with its severity. What they do, bench/metrics tests.
func TestDocsDashboardAndAlerts(t *testing.T) {
	rules, dashboard := readDoc(t, "docs/prometheus/muslin.rules.yml"), readDoc(t, "docs/grafana/muslin.json")
	known := map[string]bool{} // and whether the dashboard has it
	for _, f := range metrics.Families() {
		known[f.Name] = false
		if f.Kind == metrics.Histogram {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				known[f.Name+suffix] = true
			}
			known[f.Name] = true
		}
	}
	name := regexp.MustCompile(`\bmuslin_[a-z0-9_]+`)
	for where, text := range map[string]string{"the rules": rules, "the dashboard": dashboard} {
		for _, metric := range name.FindAllString(text, -1) {
			if _, ok := known[metric]; !ok {
				t.Errorf("%s ask for %s, which there is not", where, metric)
			}
			if where == "the dashboard" {
				known[metric] = true
			}
		}
	}
	for metric, asked := range known {
		if !asked {
			t.Errorf("the dashboard has no %s", metric)
		}
	}
	for _, record := range regexp.MustCompile(`\bmuslin:[a-z0-9_:]+`).FindAllString(dashboard+readDoc(t, "docs/metrics.md"), -1) {
		if !strings.Contains(rules, "record: "+record+"\n") {
			t.Errorf("no rule records %s", record)
		}
	}
	if !json.Valid([]byte(dashboard)) {
		t.Error("the dashboard is no JSON")
	}

	var inDocs, inRules []string
	for _, row := range tableRows(section(t, readDoc(t, "docs/metrics.md"), "Dashboard and alerts")) {
		inDocs = append(inDocs, quoted(row[0])[0]+" "+row[1])
	}
	tests := readDoc(t, "docs/prometheus/muslin.rules.test.yml")
	for _, m := range regexp.MustCompile(`(?s)- alert: (\w+)\n.*?severity: (\w+)`).FindAllStringSubmatch(rules, -1) {
		inRules = append(inRules, m[1]+" "+m[2])
		if !strings.Contains(tests, `alertname="`+m[1]+`"`) {
			t.Errorf("nothing tests that %s fires", m[1])
		}
	}
	same(t, "alert", inDocs, inRules)
}

func TestDocsListEveryHealthField(t *testing.T) {
	var inDocs []string
	for _, row := range tableRows(section(t, readDoc(t, "docs/metrics.md"), "/healthz and /readyz")) {
		inDocs = append(inDocs, quoted(row[0])...)
	}
	same(t, "field of /healthz", inDocs, statusPaths(reflect.TypeFor[health.Answer](), ""))
}

func TestDocsListEverySkipReason(t *testing.T) {
	var inDocs []string
	for _, row := range tableRows(section(t, readDoc(t, "docs/configuration.md"), "Leases that are not used")) {
		inDocs = append(inDocs, quoted(row[0])...)
	}
	same(t, "skip reason", inDocs, []string{lease.SkipKey, lease.SkipValue, lease.SkipIPv6, lease.SkipIPv4, lease.SkipOutside,
		lease.SkipBackend, lease.SkipVNI, lease.SkipKeyOurs, lease.SkipPublicIP, lease.SkipReserved, lease.SkipEndpoint, lease.SkipCircular, lease.SkipDouble})
}

// TestDocsReferenceConfig: the reference configs are read without a warning, say nothing but the defaults
// that the table gives, and their fields are those in that table.
func TestDocsReferenceConfig(t *testing.T) {
	text := section(t, readDoc(t, "docs/configuration.md"), "The network's config")
	fields := []string{"Backend", "IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"}
	for _, reference := range []struct{ mark, backend string }{
		{"reference config", lease.BackendVXLAN},
		{"reference config: wireguard", lease.BackendWireGuard},
	} {
		_, rest, ok := strings.Cut(text, "<!-- "+reference.mark+" -->\n```json\n")
		raw, _, closed := strings.Cut(rest, "```")
		if !ok || !closed {
			t.Fatal("no " + reference.mark)
		}
		checkReferenceConfig(t, raw, reference.backend)
		fields = slices.AppendSeq(fields, maps.Keys(flatten([]byte(raw))))
	}
	slices.Sort(fields)
	var inDocs []string
	for _, row := range tableRows(text) {
		inDocs = append(inDocs, quoted(row[0])...)
	}
	same(t, "config field", inDocs, slices.Compact(fields))
}

func checkReferenceConfig(t *testing.T, raw, backend string) {
	t.Helper()
	cfg, err := lease.ParseConfig([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Warnings) > 0 {
		t.Errorf("warnings: %q", cfg.Warnings)
	}
	if err := cfg.Supported(); err != nil {
		t.Error(err)
	}
	least, err := lease.ParseConfig([]byte(`{"Network":"10.244.0.0/16","Backend":{"Type":"` + backend + `"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if !cfg.Means(least) {
		t.Errorf("the reference config of %s says something else than the defaults", backend)
	}
}

func TestDocsPeersFile(t *testing.T) {
	text := section(t, readDoc(t, "docs/configuration.md"), "Peers file")
	_, rest, _ := strings.Cut(text, "```json\n")
	raw, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("no peers file")
	}
	if entries, err := lease.ParsePeersFile([]byte(raw)); err != nil || len(entries) != 2 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

// flannelEnv reads the subnet file by the rules that docs/containers.md states, which are the flannel CNI
// plugin's: KEY=VALUE lines, all four needed, only the literal true is true. It shares no code with
// package lease.
func flannelEnv(content string) (network, subnet netip.Prefix, mtu uint64, masq bool, err error) {
	found := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(content))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), "=")
		found[key] = value
	}
	for _, key := range []string{"FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"} {
		if found[key] == "" {
			return network, subnet, mtu, masq, fmt.Errorf("%s is missing", key)
		}
	}
	if network, err = netip.ParsePrefix(found["FLANNEL_NETWORK"]); err != nil {
		return network, subnet, mtu, masq, err
	}
	if subnet, err = netip.ParsePrefix(found["FLANNEL_SUBNET"]); err != nil {
		return network, subnet, mtu, masq, err
	}
	mtu, err = strconv.ParseUint(found["FLANNEL_MTU"], 10, 32)
	return network, subnet, mtu, found["FLANNEL_IPMASQ"] == "true", err
}

func TestDocsSubnetFile(t *testing.T) {
	for _, masq := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "flannel", "subnet.env")
		file := lease.SubnetFile{
			Network: netip.MustParsePrefix("10.244.0.0/16"), Subnet: netip.MustParsePrefix("10.244.66.0/24"), MTU: 1450, IPMasq: masq}
		if err := file.Write(path); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		network, subnet, mtu, gotMasq, err := flannelEnv(string(content))
		if err != nil {
			t.Fatalf("%v in\n%s", err, content)
		}
		if network != file.Network || subnet != netip.MustParsePrefix("10.244.66.1/24") || mtu != 1450 || gotMasq != masq {
			t.Errorf("%v %v %d %v from\n%s", network, subnet, mtu, gotMasq, content)
		}
		if !masq {
			// The pages show just this file, indented.
			shown := "    " + strings.ReplaceAll(strings.TrimSpace(string(content)), "\n", "\n    ") + "\n"
			for _, page := range []string{"README.md", "docs/containers.md"} {
				if !strings.Contains(readDoc(t, page), shown) {
					t.Errorf("%s shows another subnet file than\n%s", page, shown)
				}
			}
		}
	}
	if _, _, _, _, err := flannelEnv("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.66.1/24\nFLANNEL_IPMASQ=true\n"); err == nil {
		t.Error("the parser takes a file without an MTU")
	}
	rows := tableRows(section(t, readDoc(t, "docs/containers.md"), "The subnet file"))
	if len(rows) != 4 {
		t.Errorf("%d lines of the subnet file are explained, want 4", len(rows))
	}
}

func TestDocsExamples(t *testing.T) {
	var list struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Plugins    []struct {
			Type       string `json:"type"`
			SubnetFile string `json:"subnetFile"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal([]byte(readDoc(t, "docs/examples/10-muslin.conflist")), &list); err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion == "" || list.Name == "" || len(list.Plugins) == 0 ||
		list.Plugins[0].Type != "flannel" || list.Plugins[0].SubnetFile != lease.DefaultSubnetFile {
		t.Errorf("the CNI sample does not call the flannel plugin with %s: %+v", lease.DefaultSubnetFile, list)
	}
	for file, want := range map[string][]string{
		"docs/examples/docker-muslin.conf": {"EnvironmentFile=" + lease.DefaultSubnetFile + "\n", "\nExecStart=\n", "--bip=${FLANNEL_SUBNET} --mtu=${FLANNEL_MTU}"},
		"docs/examples/muslin.service":     {"\nType=notify\n", "\nWatchdogSec=", "\nRestart=on-failure\n", "\nFileDescriptorStoreMax=", "\nUser=muslin\n", "\nEnvironmentFile=-/etc/muslin.env\n", "\nRuntimeDirectory=muslin flannel\n", "\nStateDirectory=muslin\n", "CAP_NET_ADMIN", "/dev/net/tun rw"},
	} {
		text := readDoc(t, file)
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s lacks %q", file, w)
			}
		}
	}
	// The settings are flags of run.
	run := commandFlags()["muslin run"]
	settings := regexp.MustCompile(`MUSLIN_([A-Z_]+[A-Z])=`).FindAllStringSubmatch(readDoc(t, "docs/examples/muslin.env"), -1)
	if len(settings) < 5 {
		t.Errorf("%d settings in the example", len(settings))
	}
	for _, m := range settings {
		if run[strings.ReplaceAll(strings.ToLower(m[1]), "_", "-")] == nil {
			t.Errorf("MUSLIN_%s is no flag of run", m[1])
		}
	}
}

// pages are all Markdown files of the docs and the root, by path from the root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range []string{"README.md", "CHANGELOG.md", "SECURITY.md"} {
		all[name] = readDoc(t, name)
	}
	err := filepath.WalkDir(filepath.Join(projectRoot, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".md" {
			return err
		}
		name, err := filepath.Rel(projectRoot, path)
		if err == nil {
			all[name] = readDoc(t, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 15 {
		t.Fatalf("only %d pages found", len(all))
	}
	return all
}

// foreignFlags are flags of other programs that the pages name.
var foreignFlags = []string{"bip", "mtu", "cap-add", "device", "prefix", "unix-socket", "random-fully", "kube-subnet-mgr",
	"comment", "now", "containerd", "help", "profile", "endpoints", "cacert", "interactive", "client-cert-auth", "no-password",
	"permanent", "zone", "add-source", "add-port", "reload", "get-zone-of-interface", "unit"}

// hiddenFlags are muslin's, and in no --help.
var hiddenFlags = []string{"subnet-lease-ttl"}

// TestDocsNameWhatExists: every flag in any page is a flag of some command, every path to a source file
// exists, every link leads somewhere.
func TestDocsNameWhatExists(t *testing.T) {
	known := slices.Concat(foreignFlags, hiddenFlags)
	for _, flags := range commandFlags() {
		known = slices.AppendSeq(known, maps.Keys(flags))
	}
	flag := regexp.MustCompile("(?:^|[\\s`(\"])--([a-z][a-z0-9-]*[a-z0-9])")
	source := regexp.MustCompile(`\b(?:encap|tunnel|lease|cmd|bench)/[a-z0-9_/]*[a-z0-9_]\.go\b`)
	room := regexp.MustCompile("`((?:encap|tunnel|lease|cmd|bench)(?:/[a-z]+)*)`")
	link := regexp.MustCompile(`\]\(([^)]+)\)`)
	all := pages(t)
	for name, text := range all {
		for _, m := range flag.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(known, m[1]) {
				t.Errorf("%s names --%s, which no command has", name, m[1])
			}
		}
		paths := source.FindAllString(text, -1)
		for _, m := range room.FindAllStringSubmatch(text, -1) {
			paths = append(paths, m[1])
		}
		for _, p := range paths {
			if _, err := os.Stat(filepath.Join(projectRoot, p)); err != nil {
				t.Errorf("%s names %s, which is not there", name, p)
			}
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := name
			if file != "" {
				target = filepath.Join(filepath.Dir(name), file)
			}
			if _, err := os.Stat(filepath.Join(projectRoot, target)); err != nil {
				t.Errorf("%s links to %s, which is not there", name, m[1])
			}
			if anchor != "" && !slices.Contains(anchors(all[target]), anchor) {
				t.Errorf("%s links to %s, which has no such heading", name, m[1])
			}
		}
	}
}

// anchors are the names that GitHub gives to headings.
func anchors(text string) []string {
	drop := regexp.MustCompile("[^a-z0-9 _-]")
	var out []string
	for line := range strings.Lines(text) {
		if heading := strings.TrimLeft(line, "#"); heading != line {
			heading = strings.ToLower(strings.TrimSpace(heading))
			out = append(out, strings.ReplaceAll(drop.ReplaceAllString(heading, ""), " ", "-"))
		}
	}
	return out
}

// TestDocsNetworks: the reference file is read, and the tables of docs/networks.md are what the code does.
func TestDocsNetworks(t *testing.T) {
	text := readDoc(t, "docs/networks.md")
	_, rest, ok := strings.Cut(text, "<!-- reference networks -->\n```yaml\n")
	raw, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("no reference networks")
	}
	all, err := networksOf(t, process(t), raw)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 {
		t.Errorf("%d networks", len(all))
	}
	derived := make(map[string]bool)
	for _, row := range tableRows(section(t, text, "What follows from the name")) {
		flag, value := quoted(row[0])[0], quoted(row[1])[0]
		derived[flag] = true
		if got := flagValues(all["blue"].set)[flag]; got != value {
			t.Errorf("%s of blue: %s in the docs, %s in the code", flag, value, got)
		}
	}
	if len(derived) != 5 {
		t.Errorf("derived: %v", derived)
	}
	refused, _, _ := strings.Cut(section(t, text, "The file"), "What is wrong")
	for _, name := range slices.Concat(networkFlags, processFlags) {
		if name != "config" && name != "replace" && !strings.Contains(refused, "`--"+name+"`") {
			t.Errorf("--%s is not among the flags that are one network's or the process's", name)
		}
	}
	var inDocs, inCode []string
	for _, row := range tableRows(section(t, text, "Looking at them")) {
		inDocs = append(inDocs, quoted(row[0])...)
	}
	for _, path := range statusPaths(reflect.TypeFor[control.Networks](), "") {
		if top, _, _ := strings.Cut(path, "."); top == "privileges" || top == "process" || strings.HasPrefix(top, "privileges") {
			path = strings.TrimSuffix(top, "[]")
		}
		if !slices.Contains(inCode, path) {
			inCode = append(inCode, path)
		}
	}
	same(t, "field of the status of several networks", inDocs, inCode)
}
