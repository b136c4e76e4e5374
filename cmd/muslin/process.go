package main

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"time"

	"muslin/cmd/muslin/control"
)

// processStarted is when this process began to run muslin's code.
var processStarted = time.Now().UTC()

// processStatus leaves 0 where the kernel does not say.
func processStatus() control.ProcessStatus {
	s := control.ProcessStatus{PID: os.Getpid(), Started: processStarted, Goroutines: runtime.NumGoroutine()}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		s.Descriptors = len(open) - 1 // the directory itself is one
	}
	// "size resident shared …", in pages (proc_pid_statm(5)).
	if statm, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := bytes.Fields(statm); len(fields) > 1 {
			pages, _ := strconv.ParseInt(string(fields[1]), 10, 64)
			s.Resident = pages * int64(os.Getpagesize())
		}
	}
	return s
}
