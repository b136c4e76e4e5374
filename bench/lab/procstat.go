//go:build linux

package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Fields of /proc/PID/stat, counted from 1 as proc_pid_stat(5) does.
const (
	statUserTime   = 14 // in clock ticks, all threads
	statSystemTime = 15 // in clock ticks, all threads
	statStart      = 22 // in clock ticks since boot
)

// clockTick is USER_HZ, in which the kernel shows times to programs: 100 a second on every architecture that
// muslin is built for (sysconf(3), _SC_CLK_TCK).
const clockTick = time.Second / 100

// processStart is when a process started, in clock ticks since boot.
func processStart(pid int) (uint64, error) { return processStat(pid, statStart) }

func processStat(pid, field int) (uint64, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	value, err := statField(string(stat), field)
	if err != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return value, nil
}

// statField reads one of the fields that are numbers. The second field is the command's name in brackets,
// which may hold blanks and brackets itself.
func statField(stat string, field int) (uint64, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // from field 3 on
	if len(fields) <= field-3 {
		return 0, fmt.Errorf("no field %d", field)
	}
	return strconv.ParseUint(fields[field-3], 10, 64)
}

// CPU is the processor time that the process, with all its threads, has used. A process that has ended is an
// error.
func (p *Proc) CPU() (time.Duration, error) {
	var total time.Duration
	for _, field := range []int{statUserTime, statSystemTime} {
		ticks, err := processStat(p.PID(), field)
		if err != nil {
			return 0, fmt.Errorf("processor time of %s: %w", p.Name, err)
		}
		total += time.Duration(ticks) * clockTick
	}
	return total, nil
}

// Memory is what a process holds of the machine's, in bytes.
type Memory struct {
	Resident int64 // now (VmRSS)
	Peak     int64 // at most, since it started (VmHWM)
}

// Memory reads what the process holds. A process that has ended is an error.
func (p *Proc) Memory() (Memory, error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/status")
	if err != nil {
		return Memory{}, fmt.Errorf("memory of %s: %w", p.Name, err)
	}
	m, err := parseMemory(string(status))
	if err != nil {
		return Memory{}, fmt.Errorf("memory of %s: %w", p.Name, err)
	}
	return m, nil
}

// parseMemory reads /proc/PID/status, which has both in KiB. A process that has ended, but was not waited for
// yet, has neither.
func parseMemory(status string) (Memory, error) {
	var m Memory
	for name, to := range map[string]*int64{"VmRSS": &m.Resident, "VmHWM": &m.Peak} {
		_, after, _ := strings.Cut(status, "\n"+name+":")
		line, _, _ := strings.Cut(after, "\n")
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(line, " kB")), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("no %s in /proc/PID/status", name)
		}
		*to = kib << 10
	}
	return m, nil
}

// Descriptors is how many file descriptors the process has open.
func (p *Proc) Descriptors() (int, error) {
	open, err := os.ReadDir("/proc/" + strconv.Itoa(p.PID()) + "/fd")
	if err != nil {
		return 0, fmt.Errorf("descriptors of %s: %w", p.Name, err)
	}
	return len(open), nil
}
