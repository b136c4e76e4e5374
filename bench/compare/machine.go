package compare

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// Machine describes where a run took place, without a name that would tell one machine from another.
type Machine struct {
	CPU        string  `json:"cpu"` // model, as /proc/cpuinfo has it
	Cores      int     `json:"cores"`
	MemoryMB   int     `json:"memory_mb"`
	Kernel     string  `json:"kernel"` // release
	Arch       string  `json:"arch"`
	TCP        string  `json:"tcp"` // congestion control
	Go         string  `json:"go"`  // that muslin was built with
	Muslin     string  `json:"muslin"`
	Iperf3     string  `json:"iperf3"`
	Sockperf   string  `json:"sockperf"`
	IdleCPU    float64 `json:"idle_cpu"`   // how busy it was with all systems set up and none measured, in percent of all cores
	Hypervisor bool    `json:"hypervisor"` // whether it is a virtual machine
}

// describeMachine leaves empty what cannot be read. muslin is the version of the measured binary.
func describeMachine(muslin string) Machine {
	m := Machine{
		Cores:  runtime.NumCPU(),
		Arch:   runtime.GOARCH,
		Go:     runtime.Version(),
		Muslin: muslin,
		Kernel: readLine("/proc/sys/kernel/osrelease"),
		TCP:    readLine("/proc/sys/net/ipv4/tcp_congestion_control"),
	}
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	m.CPU, m.Hypervisor = parseCPUInfo(string(cpuinfo))
	meminfo, _ := os.ReadFile("/proc/meminfo")
	var kilobytes int
	if _, err := fmt.Sscanf(string(meminfo), "MemTotal: %d kB", &kilobytes); err == nil {
		m.MemoryMB = kilobytes / 1024
	}
	return m
}

func readLine(path string) string {
	content, _ := os.ReadFile(path)
	return strings.TrimSpace(string(content))
}

// parseCPUInfo looks for "model name" (x86), or what other architectures have in its place, and for the flag
// by which x86 shows that there is a hypervisor.
func parseCPUInfo(content string) (model string, hypervisor bool) {
	for line := range strings.Lines(content) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "model name", "Model", "uarch":
			if model == "" {
				model = value
			}
		case "flags":
			hypervisor = hypervisor || strings.Contains(" "+value+" ", " hypervisor ")
		}
	}
	return model, hypervisor
}

// String is one paragraph for people.
func (m Machine) String() string {
	virtual := ""
	if m.Hypervisor {
		virtual = ", virtual machine"
	}
	return fmt.Sprintf("%s, %d cores, %d MB%s; Linux %s %s, TCP %s; muslin %s (%s), %s, %s; %.1f %% busy with all systems idle",
		m.CPU, m.Cores, m.MemoryMB, virtual, m.Kernel, m.Arch, m.TCP, m.Muslin, m.Go, m.Iperf3, m.Sockperf, m.IdleCPU)
}
