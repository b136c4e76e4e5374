//go:build linux

package compare

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"muslin/bench/lab"
)

// bed is what a measurement works with.
type bed struct {
	from, to *lab.Pod
	daemons  []*lab.Proc
	settings Settings
}

// runner takes one measurement. Its values are by the names of the figures.
type runner func(ctx context.Context, b bed) (map[string]float64, error)

// tcpRun sends TCP at full rate.
type tcpRun struct {
	streams int
	back    bool // from to to from
	cpu     bool // with the processor time that it takes
}

func (t tcpRun) run(ctx context.Context, b bed) (map[string]float64, error) {
	name := fmt.Sprintf("tcp-%d", t.streams)
	flags := []string{"-t", strconv.Itoa(b.settings.Seconds), "-P", strconv.Itoa(t.streams)}
	if t.back {
		name += "-back"
		flags = append(flags, "-R")
	}
	var used cpuTime
	flow, err := lab.Iperf(ctx, b.from.Node, b.to.Node, b.to.Addr, func(run func() error) (err error) {
		used, err = cpuOf(b.daemons, run)
		return err
	}, flags...)
	if err != nil {
		return nil, err
	}
	if flow.Bytes == 0 {
		return nil, errors.New("nothing arrived")
	}
	values := map[string]float64{name: flow.BitsPerSecond / 1e9}
	if t.cpu {
		gigabytes := float64(flow.Bytes) / 1e9
		values[figureCPU] = used.machine.Seconds() / gigabytes
		if len(b.daemons) > 0 {
			values[figureCPUDaemons] = used.daemons.Seconds() / gigabytes
		}
	}
	return values, nil
}

// udpRun sends UDP datagrams, as fast as the sender can or at the settings' fixed rate.
type udpRun struct {
	size  int // of the payload, in bytes
	fixed bool
}

func (u udpRun) run(ctx context.Context, b bed) (map[string]float64, error) {
	name := fmt.Sprintf("udp-%d", u.size)
	rate := 0 // without a limit
	if u.fixed {
		name += "-fixed"
		rate = b.settings.FixedPPS * u.size * 8
	}
	flow, err := lab.Iperf(ctx, b.from.Node, b.to.Node, b.to.Addr, nil,
		"-u", "-t", strconv.Itoa(b.settings.Seconds), "-l", strconv.Itoa(u.size), "-b", strconv.Itoa(rate))
	if err != nil {
		return nil, err
	}
	counted := flow.Received + flow.Lost
	if counted == 0 || flow.Seconds == 0 {
		return nil, errors.New("nothing arrived")
	}
	return map[string]float64{
		name:           float64(flow.Received) / flow.Seconds / 1e3,
		name + "-loss": 100 * float64(flow.Lost) / float64(counted),
	}, nil
}

// cpuTime is what a measurement used.
type cpuTime struct {
	machine time.Duration // by everything, the kernel's interrupts among it
	daemons time.Duration // in the daemons' threads
}

// cpuOf runs something and says what was used meanwhile.
func cpuOf(daemons []*lab.Proc, run func() error) (cpuTime, error) {
	before, err := readCPU(daemons)
	if err != nil {
		return cpuTime{}, err
	}
	if err := run(); err != nil {
		return cpuTime{}, err
	}
	after, err := readCPU(daemons)
	return cpuTime{machine: after.machine - before.machine, daemons: after.daemons - before.daemons}, err
}

func readCPU(daemons []*lab.Proc) (t cpuTime, err error) {
	if t.machine, err = machineCPU(); err != nil {
		return t, err
	}
	for _, d := range daemons {
		used, err := d.CPU()
		if err != nil {
			return t, err
		}
		t.daemons += used
	}
	return t, nil
}
