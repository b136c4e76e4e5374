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
