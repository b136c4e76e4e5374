//go:build linux

package kernel

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel/netnstest"
)

// ample is time enough on any machine: what is tested with it does not depend on the clock.
const ample = time.Minute

// childVariable makes this test binary a process that examines the kernel and says what it found.
const childVariable = "MUSLIN_TEST_EXAMINE"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	features, probes := examine(context.Background(), Features{}, ample, nil)
	for _, p := range probes {
		fmt.Printf("%s|%v|%v|%s\n", p.Name, features.On(p.Name), p.Answer, p.Reason)
	}
}

// since reports whether the running kernel is a version that has r. It is here that versions count: a feature
// that is reported missing on a kernel that has it is a fault of the probe.
func since(t *testing.T, r Rung) bool {
	t.Helper()
	if r.Since == "any" {
		return true
	}
	host, err := Uname()
	if err != nil {
		t.Fatal(err)
	}
	version := func(s string) (v [3]int) {
		_, _ = fmt.Sscanf(s, "%d.%d.%d", &v[0], &v[1], &v[2])
		return v
	}
	running, needed := version(host.Release), version(r.Since)
	if running == [3]int{} || needed == [3]int{} {
		t.Fatalf("no version in %q or %q", host.Release, r.Since)
	}
	return slices.Compare(running[:], needed[:]) >= 0
}

// available is what the running kernel has, going by the examination that TestExamine holds to the versions.
func available(t *testing.T) Features {
	t.Helper()
	return availableOnce()
}

var availableOnce = sync.OnceValue(func() Features {
	f, _ := examine(context.Background(), Features{}, ample, nil)
	return f
})

func TestExamine(t *testing.T) {
	netnstest.RequireRoot(t)
	features, probes := examine(context.Background(), Features{}, ample, nil)
	if len(probes) != len(Ladder) {
		t.Fatalf("%d answers for %d features", len(probes), len(Ladder))
	}
	for i, r := range Ladder {
		p := probes[i]
		if p.Name != r.Name || p.Reason == "" {
			t.Errorf("answer %d is %+v, want one about %s", i, p, r.Name)
		}
		// An older kernel may have it all the same, in its stable releases.
		if since(t, r) && p.Answer != Yes {
			t.Errorf("%s: %v (%s), and kernels have it since %s", r.Name, p.Answer, p.Reason, r.Since)
		}
		if features.On(r.Name) != (p.Answer != No) {
			t.Errorf("%s: on is %v, the answer %v", r.Name, features.On(r.Name), p.Answer)
		}
	}
	// A kernel that has the feature gives what it promises.
	for _, name := range []string{TUNTSO, TUNUSO, UDPGRO} {
		p := probes[slices.Index(FeatureNames(), name)]
		if since(t, *rung(name)) && !strings.Contains(p.Reason, "2 of 2 superpackets whole") {
			t.Errorf("%s: %s", name, p.Reason)
		}
	}
}

func TestExamineLeavesNothing(t *testing.T) {
	netnstest.RequireRoot(t)
	examine(context.Background(), Features{}, ample, nil) // whatever the runtime opens once
	type state struct {
		descriptors, goroutines int
		devices, namespaces     string
	}
	look := func() (s state) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		names, err := os.ReadDir("/sys/class/net")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if strings.HasPrefix(n.Name(), "mprobe") || n.Name() == "vxprobe" {
				s.devices += n.Name() + " "
			}
		}
		links, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		var namespaces []string
		for _, l := range links {
			if ns, err := os.Readlink(l); err == nil { // a thread may end meanwhile
				namespaces = append(namespaces, ns)
			}
		}
		slices.Sort(namespaces)
		s.namespaces = fmt.Sprint(slices.Compact(namespaces))
		s.descriptors, s.goroutines = len(fds), runtime.NumGoroutine()
		return s
	}
	before := look()
	for range 3 {
		examine(context.Background(), Features{}, ample, nil)
	}
	// The last goroutine may still have to return when its last answer is there.
	clean := func(s state) bool {
		return s.descriptors <= before.descriptors && s.goroutines <= before.goroutines &&
			s.devices == "" && s.namespaces == before.namespaces
	}
	end := time.Now().Add(10 * time.Second)
	after := look()
	for !clean(after) && time.Now().Before(end) {
		runtime.Gosched()
		after = look()
	}
	if !clean(after) {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

func TestExamineTouchesOnlyWhatIsWanted(t *testing.T) {
	netnstest.RequireRoot(t)
	wanted, err := ParseFeatures("-udp-gso,-tun-vnet")
	if err != nil {
		t.Fatal(err)
	}
	features, probes := examine(context.Background(), wanted, ample, func(feature, what string, p []byte) []byte {
		if feature != "" && feature != UDPGRO {
			t.Errorf("%s %s was tested", feature, what)
		}
		return p
	})
	for _, p := range probes {
		if wanted.On(p.Name) {
			continue
		}
		if p.Answer != Unknown || p.Reason != "not tried: "+wanted.Why(p.Name) {
			t.Errorf("%s: %v (%s)", p.Name, p.Answer, p.Reason)
		}
		if features.On(p.Name) {
			t.Errorf("%s was switched on", p.Name)
		}
	}
	// Without tun-udp-gro and udp-gso nothing can make the superpacket that udp-gro is tested with.
	p := probes[slices.Index(FeatureNames(), UDPGRO)]
	if p.Answer != Unknown || !features.On(UDPGRO) || !strings.Contains(p.Reason, TUNUDPGRO) || !strings.Contains(p.Reason, UDPGSO) {
		t.Errorf("udp-gro: %+v, on is %v", p, features.On(UDPGRO))
	}
}

// Kernels before 6.2 take no UDP superpacket from a TUN device; udp-gro is tested all the same.
func TestExamineUDPGROWithoutTUN(t *testing.T) {
	netnstest.RequireRoot(t)
	wanted := Features{}.Without(TUNUDPGRO, "for this test")
	_, probes := examine(context.Background(), wanted, ample, nil)
	p := probes[slices.Index(FeatureNames(), UDPGRO)]
	if since(t, *rung(UDPGRO)) && (p.Answer != Yes || !strings.Contains(p.Reason, "2 of 2 superpackets whole")) {
		t.Errorf("udp-gro: %v (%s)", p.Answer, p.Reason)
	}
}

// examineWithout runs an examination in a process that lacks capabilities for good, in a network namespace of
// its own, and returns its answers and reasons by feature, where the kernel is new enough for it. All of these
// must still be on.
func examineWithout(t *testing.T, capabilities ...uintptr) map[string]Probe {
	t.Helper()
	netnstest.RequireRoot(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	for _, c := range capabilities {
		// exec gives root what is in the bounding set, and the process is forked from this thread.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childVariable+"=1")
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := make(map[string]Probe)
	lines := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.SplitN(strings.TrimSpace(line), "|", 4)
		if len(fields) != 4 {
			continue
		}
		p := Probe{Name: fields[0], Reason: fields[3]}
		switch fields[2] {
		case "yes":
			p.Answer = Yes
		case "no":
			p.Answer = No
		}
		lines++
		if !available(t).On(p.Name) {
			continue
		}
		if fields[1] != "true" {
			t.Errorf("%s went off: %s", p.Name, p.Reason)
		}
		found[p.Name] = p
	}
	if lines != len(Ladder) {
		t.Fatalf("%d answers:\n%s", lines, out)
	}
	return found
}

func TestExamineWithoutSysAdmin(t *testing.T) {
	found := examineWithout(t, unix.CAP_SYS_ADMIN)
	for _, name := range testedFeatures() {
		if p, ok := found[name]; ok && (p.Answer != Unknown || !strings.Contains(p.Reason, "CAP_SYS_ADMIN")) {
			t.Errorf("%s: %v (%s)", name, p.Answer, p.Reason)
		}
	}
	for _, name := range []string{MMsg, MultiQueue, SourcePorts, TUNDrain} {
		if p, ok := found[name]; ok && p.Answer != Yes {
			t.Errorf("%s: %v (%s)", name, p.Answer, p.Reason)
		}
	}
}

func TestExamineWithoutAnyRights(t *testing.T) {
	found := examineWithout(t, unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN)
	for _, name := range testedFeatures() {
		if p, ok := found[name]; ok && (p.Answer != Unknown || !strings.Contains(p.Reason, "TUNSETIFF")) {
			t.Errorf("%s: %v (%s)", name, p.Answer, p.Reason)
		}
	}
}

// Where the kernel does not let go of the examination, the start goes on without it.
func TestExamineDoesNotHang(t *testing.T) {
	netnstest.RequireRoot(t)
	hung, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	const limit = 300 * time.Millisecond
	start := time.Now()
	features, probes := examine(context.Background(), Features{}, limit, func(feature, _ string, p []byte) []byte {
		if feature == TUNTCPGRO {
			once.Do(func() { close(hung) })
			<-release
		}
		return p
	})
	took := time.Since(start)
	close(release)
	if took < limit || took > limit+5*time.Second { // on a machine that is busy
		t.Errorf("it took %v", took)
	}
	for _, p := range probes {
		if !features.On(p.Name) && available(t).On(p.Name) {
			t.Errorf("%s went off: %s", p.Name, p.Reason)
		}
	}
	select {
	case <-hung:
	default:
		return // busy: it did not get that far
	}
	if p := probes[slices.Index(FeatureNames(), TUNVnet)]; p.Answer != Yes {
		t.Errorf("what was found out before is lost: %+v", p)
	}
	if p := probes[slices.Index(FeatureNames(), TUNTCPGRO)]; p.Answer != Unknown || !strings.Contains(p.Reason, "did not end") {
		t.Errorf("tun-tcp-gro: %v (%s)", p.Answer, p.Reason)
	}
}

func TestExamineNothing(t *testing.T) {
	wanted, err := ParseFeatures("none")
	if err != nil {
		t.Fatal(err)
	}
	features, probes := Examine(context.Background(), wanted)
	for _, p := range probes {
		if features.On(p.Name) || p.Answer != Unknown || p.Reason != "not tried: --features=none" {
			t.Errorf("%s: on %v, %v (%s)", p.Name, features.On(p.Name), p.Answer, p.Reason)
		}
	}
}

func TestOwnThreadIsNotTheMainOne(t *testing.T) {
	for range 100 {
		main := make(chan bool)
		onOwnThread(func() { main <- unix.Gettid() == unix.Getpid() })
		if <-main {
			t.Fatal("it ran on the main thread")
		}
	}
}

func TestConclude(t *testing.T) {
	wanted := Features{}.Without(UDPGSO, "left out by --features")
	features, probes := conclude(wanted, map[string]Probe{
		MMsg:    given("there"),
		TUNVnet: {Name: TUNVnet, Answer: No, Reason: "broken"},
		TUNTSO:  awaiting(), // asked before tun-vnet failed
		UDPGRO:  {Name: UDPGRO, Answer: Unknown, Reason: "not tested"},
		UDPGSO:  given("should not have been asked"),
	})
	for _, c := range []struct {
		name   string
		on     bool
		answer Answer
		reason string
	}{
		{MMsg, true, Yes, "there"},
		{UDPGSO, false, Unknown, "not tried: left out by --features"},
		{UDPGRO, true, Unknown, "not tested"},
		{TUNVnet, false, No, "broken"},
		{TUNTSO, false, No, "needs tun-vnet, which is off"},
		{TUNUSO, false, No, "needs tun-tso, which is off"},
		{TUNDrain, true, Unknown, "not tried: no answer in time"},
	} {
		p := probes[slices.Index(FeatureNames(), c.name)]
		if features.On(c.name) != c.on || p.Answer != c.answer || p.Reason != c.reason {
			t.Errorf("%s: on %v, %v (%s)", c.name, features.On(c.name), p.Answer, p.Reason)
		}
	}
}
