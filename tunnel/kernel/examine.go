//go:build linux

package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// examineTime is how long an examination takes at most, whatever hangs. On an idle machine it takes some 50 ms,
// nearly all of it in closing the TUN devices.
const examineTime = time.Second

// Examine tries every feature of wanted on throw-away descriptors and, where it may make one, in a
// throw-away network namespace. It returns wanted less what this kernel does not have or has broken, and
// what was found out about each feature, in the order of Ladder. Only a No takes a feature out: what could
// not be tried stays in.
//
// It never fails, leaves nothing behind, and returns within a second; where the kernel keeps it waiting for
// longer, its thread ends by itself. A feature that is not wanted is not touched, so that one which harms the
// kernel can be left out.
func Examine(ctx context.Context, wanted Features) (Features, []Probe) {
	return examine(ctx, wanted, examineTime, nil)
}

func examine(ctx context.Context, wanted Features, limit time.Duration, tamper tamperFunc) (Features, []Probe) {
	e := &examiner{features: wanted, found: make(chan Probe, maxFindings), tamper: tamper}
	onOwnThread(func() {
		defer close(e.found)
		ctx, cancel := context.WithTimeout(ctx, limit-limit/10) // so that undoing has time, too
		defer cancel()
		e.run(ctx)
	})
	late := time.NewTimer(limit)
	defer late.Stop()
	found := make(map[string]Probe)
	for {
		select {
		case p, more := <-e.found:
			if !more {
				return conclude(wanted, found)
			}
			found[p.Name] = p
		case <-late.C:
			return conclude(wanted, found)
		}
	}
}

// conclude puts together what was found, by name, with what was not tried.
func conclude(wanted Features, found map[string]Probe) (Features, []Probe) {
	features := wanted
	var probes []Probe
	for _, r := range Ladder {
		p, ok := found[r.Name]
		switch {
		case !wanted.On(r.Name):
			p = Probe{Reason: "not tried: " + wanted.Why(r.Name)}
		case ok && p.Answer == No:
			features = features.Without(r.Name, p.Reason)
		case !features.On(r.Name):
			p = Probe{Answer: No, Reason: features.Why(r.Name)}
		case !ok:
			p = Probe{Reason: "not tried: no answer in time"}
		}
		p.Name = r.Name
		probes = append(probes, p)
	}
	return features, probes
}

// examiner is one examination. It runs on a thread of its own.
type examiner struct {
	features Features   // wanted, less what was found missing so far
	found    chan Probe // room for all that will be said, so that nobody waits for a reader
	there    []string   // what the kernel has, with its self-test still to come
	tamper   tamperFunc // tests only
}

// maxFindings: a feature is told of when it was tried, when its self-test was, and in between.
var maxFindings = 4 * len(Ladder)

func (e *examiner) run(ctx context.Context) {
	e.try(MMsg, probeMMsg)
	e.try(SourcePorts, nothingNeeded)
	e.try(OuterECN, probeOuterECN)
	e.try(UDPGSO, probeUDPGSO)
	e.try(UDPGRO, probeUDPGRO)
	e.try(EarlyFilter, probeEarlyFilter)
	e.try(TUNDrain, nothingNeeded)
	e.try(MultiQueue, probeMultiQueue)
	e.try(TUNNAPI, probeTUNNAPI)
	e.try(BusyPoll, nothingNeeded)
	if slices.ContainsFunc(testedFeatures(), e.features.On) {
		e.inNamespace(ctx)
	}
}

// inNamespace tries what needs a TUN device: in a network namespace of its own with the self-test, or here
// without it.
func (e *examiner) inNamespace(ctx context.Context) {
	leave, nsErr := enterNamespace()
	if nsErr == nil {
		defer leave()
	}
	in, err := openTap(e.features.On(TUNVnet))
	if err != nil {
		e.untestable(fmt.Errorf("a throw-away TUN device: %w", err))
		return
	}
	defer in.close()
	e.tryTap(in)
	if nsErr != nil {
		e.untestable(fmt.Errorf("a throw-away network namespace: %w", nsErr))
		return
	}
	out, err := openTap(e.features.On(TUNVnet))
	if err != nil {
		e.untestable(fmt.Errorf("a throw-away TUN device: %w", err))
		return
	}
	defer out.close()
	c, err := newCircuit(ctx, in, out)
	if err != nil {
		e.untestable(fmt.Errorf("the throw-away network: %w", err))
		return
	}
	defer c.close()
	c.tamper = e.tamper
	e.selfTest(c)
}

// untestable says of every feature that has a self-test, and is not known to be missing, that it was not
// tested.
func (e *examiner) untestable(why error) {
	for _, name := range testedFeatures() {
		if e.features.On(name) {
			e.say(e.untested(name, why))
		}
	}
}

func (e *examiner) untested(name string, why error) Probe {
	p := Probe{Name: name, Err: why, Reason: fmt.Sprintf("not tried: %v", why)}
	if slices.Contains(e.there, name) {
		p.Reason = fmt.Sprintf("the kernel has it, but no self-test was made: %v", why)
	}
	if errors.Is(why, unix.EPERM) {
		p.Reason += " (it takes CAP_SYS_ADMIN and CAP_NET_ADMIN)"
	}
	return p
}

// try asks ask about a feature that may still be used.
func (e *examiner) try(name string, ask func() Probe) {
	if !e.features.On(name) {
		return
	}
	p := ask()
	p.Name = name
	switch {
	case p.Answer == No && p.Reason == "":
		p.Reason = fmt.Sprintf("needs Linux %s (%v)", rung(name).Since, p.Err)
	case p.Reason == untestedYet:
		e.there = append(e.there, name)
	}
	e.say(p)
}

func (e *examiner) say(p Probe) {
	if p.Answer == No {
		e.features = e.features.Without(p.Name, p.Reason)
	}
	e.found <- p
}

// given is the Probe for what is there.
func given(reason string) Probe { return Probe{Answer: Yes, Reason: reason} }

// awaiting is the Probe for what is there, but whose self-test is still to come.
func awaiting() Probe { return Probe{Reason: untestedYet} }

const untestedYet = "the kernel has it, but its self-test did not end in time"

// answered makes a Probe of what a system call said. absent lists the errors by which a kernel says that
// it does not know what was asked for; any other leaves the question open.
func answered(op string, err error, absent ...error) Probe {
	if err == nil {
		return given("")
	}
	p := Probe{Err: fmt.Errorf("%s: %w", op, err)}
	for _, a := range absent {
		if errors.Is(err, a) {
			p.Answer = No
			return p
		}
	}
	p.Reason = fmt.Sprintf("not tried: %v", p.Err)
	return p
}

func nothingNeeded() Probe { return given("needs nothing of the kernel") }
