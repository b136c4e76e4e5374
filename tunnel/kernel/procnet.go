//go:build linux

package kernel

import "os"

// ReadNet reads /proc/net/NAME of the calling thread's network namespace (Linux 3.17), or of the process's
// before that.
func ReadNet(name string) ([]byte, error) {
	data, err := os.ReadFile("/proc/thread-self/net/" + name)
	if err != nil {
		return os.ReadFile("/proc/self/net/" + name)
	}
	return data, nil
}
