package tun

import (
	"strconv"
	"strings"

	"muslin/tunnel/kernel"
)

// overflow reads how many packets the kernel could not put into the queue of the device name:
// "drop" in the Transmit half of /proc/net/dev, which is the 12th number of the device's line (proc(5)).
// It is 0 when that cannot be read.
func overflow(name string) uint64 {
	data, err := kernel.ReadNet("dev")
	if err != nil {
		return 0
	}
	const transmitDrop = 11
	for line := range strings.Lines(string(data)) {
		device, numbers, _ := strings.Cut(line, ":")
		if strings.TrimSpace(device) != name {
			continue
		}
		if fields := strings.Fields(numbers); len(fields) > transmitDrop {
			n, _ := strconv.ParseUint(fields[transmitDrop], 10, 64)
			return n
		}
	}
	return 0
}

// since is how many there were after before, or 0 for a device that is gone.
func since(before uint64, name string) uint64 {
	if now := overflow(name); now > before {
		return now - before
	}
	return 0
}

// Overflow implements tunnel.Device.
func (d *Device) Overflow() uint64 { return since(d.dropped, d.cfg.Name) }

// Overflow implements tunnel.Device.
func (p *Portable) Overflow() uint64 { return since(p.dropped, p.cfg.Name) }
