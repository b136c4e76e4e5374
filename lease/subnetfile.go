package lease

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"muslin/encap"
)

// DefaultSubnetFile is where flannel's CNI plugin looks.
const DefaultSubnetFile = "/run/flannel/subnet.env"

// SubnetFile is what container runtimes on this host need to know of our lease. Of a family that the network does
// not have, both fields are zero.
type SubnetFile struct {
	Network, Network6 netip.Prefix // of the overlay
	Subnet, Subnet6   netip.Prefix // ours, masked; the file has the first host address, base + 1
	MTU               encap.InnerMTU
	IPMasq            bool // whether masquerading is done, and the runtime need not do it
}

// Bytes is the file's content, as flannel writes it.
func (f SubnetFile) Bytes() []byte {
	var b bytes.Buffer
	half := func(name string, network, subnet netip.Prefix) {
		if subnet.IsValid() {
			gateway := netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
			fmt.Fprintf(&b, "FLANNEL_%sNETWORK=%s\nFLANNEL_%sSUBNET=%s\n", name, network, name, gateway)
		}
	}
	half("", f.Network, f.Subnet)
	half("IPV6_", f.Network6, f.Subnet6)
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", f.MTU, f.IPMasq)
	return b.Bytes()
}

// Write replaces the file at once: a reader sees the old one or the new one, never a part. The directory
// is made (0755) if it is missing; the file is 0644.
func (f SubnetFile) Write(path string) error {
	if err := f.write(path); err != nil {
		return fmt.Errorf("write subnet file %s: %w: make its directory writable, or name another place with --subnet-file", path, err)
	}
	return nil
}

// write uses a name beside the file that is always the same, so that a daemon that is killed meanwhile leaves
// one file at most, which the next one writes over.
func (f SubnetFile) write(path string) error {
	dir, base := filepath.Split(path)
	if err := os.MkdirAll(filepath.Clean(dir), 0o755); err != nil {
		return err
	}
	unfinished := filepath.Join(dir, "."+base+".new")
	if err := replaceFile(unfinished, path, f.Bytes(), 0o644); err != nil {
		os.Remove(unfinished)
		return err
	}
	return nil
}

func replaceFile(unfinished, path string, content []byte, mode fs.FileMode) error {
	t, err := os.OpenFile(unfinished, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = t.Write(content)
	// The umask had a say in the mode.
	if err = errors.Join(err, t.Chmod(mode), t.Sync(), t.Close()); err != nil {
		return err
	}
	return os.Rename(unfinished, path)
}

// ReadSubnetFile reads what a muslin or a flannel left behind. A file that is not there gives the zero
// SubnetFile without an error; a line that makes no sense leaves its field zero.
func ReadSubnetFile(path string) (SubnetFile, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return SubnetFile{}, nil
	}
	if err != nil {
		return SubnetFile{}, fmt.Errorf("read subnet file: %w", err)
	}
	return ParseSubnetFile(data), nil
}

// ParseSubnetFile reads KEY=VALUE lines as a shell would that knows no escapes. It takes what it
// understands; the last of several lines with one key counts.
func ParseSubnetFile(data []byte) SubnetFile {
	var f SubnetFile
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if !ok {
			continue
		}
		value = unquote(value)
		switch key {
		case "FLANNEL_NETWORK":
			f.Network = prefixOrZero(value, four)
		case "FLANNEL_SUBNET":
			f.Subnet = prefixOrZero(value, four)
		case "FLANNEL_IPV6_NETWORK":
			f.Network6 = prefixOrZero(value, six)
		case "FLANNEL_IPV6_SUBNET":
			f.Subnet6 = prefixOrZero(value, six)
		case "FLANNEL_MTU":
			f.MTU = 0
			if n, err := strconv.ParseUint(value, 10, 16); err == nil {
				f.MTU = encap.InnerMTU(n)
			}
		case "FLANNEL_IPMASQ":
			f.IPMasq = value == "true"
		}
	}
	return f
}

func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

func prefixOrZero(s string, family int) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil || familyOf(p) != family || p.Addr().Is4In6() {
		return netip.Prefix{}
	}
	return p.Masked()
}
