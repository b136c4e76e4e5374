package compare

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// machineCPU is the processor time that the machine has spent busy since it started, over all cores.
func machineCPU() (time.Duration, error) {
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseBusy(string(content))
}

// parseBusy reads the first line of /proc/stat (proc_stat(5)): "cpu", then user, nice, system, idle, iowait,
// irq, softirq, and more, in hundredths of a second. Time stolen by the hypervisor is not ours, and guests' is
// in user already.
func parseBusy(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat: %q is not the sum over all processors", line)
	}
	var busy time.Duration
	for _, column := range []int{1, 2, 3, 6, 7} {
		ticks, err := strconv.ParseUint(fields[column], 10, 63)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		busy += time.Duration(ticks) * (time.Second / 100)
	}
	return busy, nil
}
