package lease

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// The backend types that leases and configs name, of flannel's those that muslin carries.
const (
	BackendVXLAN  = "vxlan"
	BackendUDP    = "udp"
	BackendHostGW = "host-gw" // a lease has no BackendData

	BackendWireGuard = "wireguard"
)

// carried are the backend types of this version, as a sentence lists them.
var carried = []string{BackendVXLAN, BackendUDP, BackendHostGW, BackendWireGuard}

// carries reports whether this version has a backend of that type.
func carries(backend string) bool {
	return slices.Contains(carried, backend)
}

const (
	defaultVNI       = 1
	defaultVXLANPort = 8472 // the Linux kernel's default, older than IANA's 4789
	defaultUDPPort   = 8285

	defaultWireGuardPort   = 51820
	defaultWireGuardPortV6 = 51821
)

// Attrs is a lease's value: how the node that holds it is reached.
type Attrs struct {
	PublicIP    netip.Addr // outer IPv4 address; zero for a node that has IPv6 only, where flannel writes 0.0.0.0
	PublicIPv6  netip.Addr // zero for null
	BackendType string     // as flannel writes it; "udp" where the value has none, as alloc's has not either

	// VNI and MAC are those of a vxlan lease, and zero otherwise. Each address family has a VTEP of its own:
	// VNI6 and MAC6 are the IPv6 half's. A MAC that is zero says that there is no such half.
	VNI, VNI6 encap.VNI
	MAC, MAC6 encap.MAC

	// Key and Port are those of a wireguard lease, and zero otherwise: Key6 and Port6 the IPv6 half's, whose key mostly is
	// the same. Port 0 is the reader's own. A key that is zero says that there is no such half.
	Key, Key6   fib.PublicKey
	Port, Port6 uint16

	// BackendData and BackendV6Data are kept as found, nil when left out. MarshalJSON makes a vxlan
	// lease's from VNI and MAC, and from VNI6 and MAC6, and a wireguard lease's from Key and Port, and from Key6 and Port6.
	// A BackendV6Data of either is here only if it could not be read: who has IPv4 alone, as a flannel node may, does not
	// look at it.
	BackendData   json.RawMessage
	BackendV6Data json.RawMessage
}

// wireAttrs is the value's shape: names, order and omissions are flannel's.
type wireAttrs struct {
	PublicIP      netip.Addr
	PublicIPv6    *netip.Addr
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
}

type wireVXLAN struct {
	VNI     uint32
	VtepMAC string
}

type wireWireGuard struct {
	PublicKey string
	Port      uint16
}

// MarshalJSON writes the value byte for byte as flannel does.
func (a Attrs) MarshalJSON() ([]byte, error) {
	if !a.PublicIP.Is4() && !(a.sixOnly() && a.PublicIPv6.IsValid()) {
		return nil, fmt.Errorf("lease value: PublicIP %v is not an IPv4 address", a.PublicIP)
	}
	w := wireAttrs{PublicIP: a.PublicIP, BackendType: a.BackendType, BackendData: a.BackendData, BackendV6Data: a.BackendV6Data}
	if a.sixOnly() {
		w.PublicIP = netip.IPv4Unspecified()
	}
	if a.PublicIPv6.IsValid() {
		w.PublicIPv6 = &a.PublicIPv6
	}
	var err error
	switch a.BackendType {
	case BackendUDP:
		w.BackendType = ""
	case BackendVXLAN:
		if !a.sixOnly() {
			w.BackendData, err = json.Marshal(wireVXLAN{VNI: a.VNI.Uint32(), VtepMAC: a.MAC.String()})
		}
		if err == nil && a.MAC6 != (encap.MAC{}) {
			w.BackendV6Data, err = json.Marshal(wireVXLAN{VNI: a.VNI6.Uint32(), VtepMAC: a.MAC6.String()})
		}
	case BackendWireGuard:
		if !a.sixOnly() {
			w.BackendData, err = json.Marshal(wireWireGuard{PublicKey: a.Key.String(), Port: a.Port})
		}
		if err == nil && !a.Key6.IsZero() {
			w.BackendV6Data, err = json.Marshal(wireWireGuard{PublicKey: a.Key6.String(), Port: a.Port6})
		}
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(w)
}

// sixOnly reports whether the node has no IPv4 address.
func (a Attrs) sixOnly() bool { return !a.PublicIP.IsValid() }

// Equal reports whether both say the same, whatever their spelling.
func (a Attrs) Equal(b Attrs) bool {
	if a.BackendType == BackendVXLAN || a.BackendType == BackendWireGuard {
		a.BackendData, b.BackendData = nil, nil
	}
	return a.PublicIP == b.PublicIP && a.PublicIPv6 == b.PublicIPv6 && a.BackendType == b.BackendType &&
		a.VNI == b.VNI && a.MAC == b.MAC && a.VNI6 == b.VNI6 && a.MAC6 == b.MAC6 && a.Key == b.Key && a.Port == b.Port && a.Key6 == b.Key6 && a.Port6 == b.Port6 &&
		sameRaw(a.BackendData, b.BackendData) && sameRaw(a.BackendV6Data, b.BackendV6Data)
}

// sameRaw reports whether encoding/json would write both alike: it drops white space and writes < > & as \u003c and so on.
func sameRaw(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if a == nil || b == nil {
		return false
	}
	wireA, errA := json.Marshal(a)
	wireB, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(wireA, wireB)
}

// String is for logs and errors: "192.0.2.2 (vxlan, VNI 1, be:e3:93:3d:62:d0)", and of a node with both families
// "192.0.2.2 and 2001:db8::2 (vxlan, VNI 1, be:e3:93:3d:62:d0 and 76:0a:15:7b:a4:2c)".
func (a Attrs) String() string {
	ip := "no PublicIP"
	switch {
	case a.PublicIP.IsValid() && a.PublicIPv6.IsValid():
		ip = a.PublicIP.String() + " and " + a.PublicIPv6.String()
	case a.PublicIP.IsValid():
		ip = a.PublicIP.String()
	case a.PublicIPv6.IsValid():
		ip = a.PublicIPv6.String()
	}
	none := encap.MAC{}
	switch a.BackendType {
	case BackendVXLAN:
		switch {
		case a.MAC6 == none:
			return fmt.Sprintf("%s (vxlan, VNI %s, %s)", ip, a.VNI, a.MAC)
		case a.MAC == none:
			return fmt.Sprintf("%s (vxlan, VNI %s, %s)", ip, a.VNI6, a.MAC6)
		case a.VNI6 != a.VNI:
			return fmt.Sprintf("%s (vxlan, VNI %s and %s, %s and %s)", ip, a.VNI, a.VNI6, a.MAC, a.MAC6)
		}
		return fmt.Sprintf("%s (vxlan, VNI %s, %s and %s)", ip, a.VNI, a.MAC, a.MAC6)
	case BackendWireGuard:
		switch {
		case a.Key6.IsZero():
			return fmt.Sprintf("%s (wireguard, port %d, %s)", ip, a.Port, a.Key)
		case a.Key.IsZero():
			return fmt.Sprintf("%s (wireguard, port %d, %s)", ip, a.Port6, a.Key6)
		case a.Key6 != a.Key:
			return fmt.Sprintf("%s (wireguard, port %d and %d, %s and %s)", ip, a.Port, a.Port6, a.Key, a.Key6)
		case a.Port6 != a.Port:
			return fmt.Sprintf("%s (wireguard, port %d and %d, %s)", ip, a.Port, a.Port6, a.Key)
		}
		return fmt.Sprintf("%s (wireguard, port %d, %s)", ip, a.Port, a.Key)
	case "":
		return ip
	}
	return fmt.Sprintf("%s (%s)", ip, a.BackendType)
}

// DecodeAttrs reads a lease's value. It is strict about what flannel's nodes are strict about, and
// about what would be put on the wire: a missing or bad PublicIP, one that is not a node's (loopback, multicast,
// broadcast), a VNI of more than 24 bits, a MAC that cannot be one VTEP's, a public key that is none. Unknown fields
// are ignored. PublicIP may be missing or 0.0.0.0, as flannel writes it, where there
// is a PublicIPv6 that is a node's. The IPv6 half of a lease that has an IPv4 half is not looked at so closely:
// what is wrong there costs that half only. After an error Attrs still holds the PublicIP, if that much
// could be read.
func DecodeAttrs(value []byte) (Attrs, error) {
	a, err := decodeAttrs(value)
	if err != nil {
		return a, fmt.Errorf("lease value: %w", err)
	}
	return a, nil
}

func decodeAttrs(value []byte) (Attrs, error) {
	a := Attrs{BackendType: BackendUDP}
	o, err := decodeObject(value)
	if err != nil {
		return a, err
	}
	if a.PublicIP, err = o.addr("PublicIP", 4); err != nil {
		return a, err
	}
	var err6 error
	a.PublicIPv6, err6 = o.addr("PublicIPv6", 6)
	switch ip := a.PublicIP; {
	case (!ip.IsValid() && !o.has("PublicIP") || ip == netip.IPv4Unspecified()) && a.PublicIPv6.IsValid():
		if !isNode(a.PublicIPv6) {
			return a, fmt.Errorf("there is no PublicIP, and PublicIPv6 %s is not the address of one node", a.PublicIPv6)
		}
		a.PublicIP = netip.Addr{}
	case !ip.IsValid():
		return a, fmt.Errorf("PublicIP is missing or null: want the node's IPv4 address, such as \"192.0.2.1\"")
	case !isNode(ip):
		return a, fmt.Errorf("PublicIP %s is not the address of one node", a.PublicIP)
	}
	if err6 != nil {
		return a, err6
	}
	backend, err := o.text("BackendType")
	if err != nil {
		return a, err
	}
	if backend != "" {
		a.BackendType = backend
	}
	a.BackendData, a.BackendV6Data = o.raw("BackendData"), o.raw("BackendV6Data")
	switch a.BackendType {
	case BackendVXLAN:
		return a, a.decodeVXLAN()
	case BackendWireGuard:
		return a, a.decodeWireGuard()
	}
	return a, nil
}

// decodeWireGuard takes the fields of both halves out of BackendData and BackendV6Data.
func (a *Attrs) decodeWireGuard() error {
	return a.decodeHalves(func(raw json.RawMessage) (err error) {
		a.Key, a.Port, err = decodeWireGuardData(raw)
		return err
	}, func(raw json.RawMessage) (err error) {
		a.Key6, a.Port6, err = decodeWireGuardData(raw)
		return err
	})
}

// decodeHalves has BackendData read by four and BackendV6Data by six. Beside an IPv4 half the IPv6 half may be missing, and
// is kept as it is where it cannot be read.
func (a *Attrs) decodeHalves(four, six func(json.RawMessage) error) error {
	if !a.sixOnly() {
		if err := four(a.BackendData); err != nil {
			return fmt.Errorf("BackendData: %w", err)
		}
	}
	a.BackendData = nil
	if a.sixOnly() || a.BackendV6Data != nil {
		if err := six(a.BackendV6Data); err == nil {
			a.BackendV6Data = nil
		} else if a.sixOnly() {
			return fmt.Errorf("BackendV6Data: %w", err)
		}
	}
	return nil
}

func decodeWireGuardData(raw json.RawMessage) (fib.PublicKey, uint16, error) {
	if raw == nil {
		return fib.PublicKey{}, 0, errors.New(`missing: want {"PublicKey":…,"Port":…}`)
	}
	o, err := decodeObject(raw)
	if err != nil {
		return fib.PublicKey{}, 0, err
	}
	text, err := o.text("PublicKey")
	if err != nil {
		return fib.PublicKey{}, 0, err
	}
	key, err := fib.ParsePublicKey(text)
	if err != nil {
		return fib.PublicKey{}, 0, fmt.Errorf("PublicKey: %w", err)
	}
	port, _, err := o.integer("Port", 0, 65535) // left out by older flannel nodes
	return key, uint16(port), err
}

// isNode reports whether other nodes can reach a node by this address.
func isNode(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) &&
		(a.Is4() || !a.IsLinkLocalUnicast()) // one of IPv6 means something on one link only
}

// decodeVXLAN is as decodeWireGuard.
func (a *Attrs) decodeVXLAN() error {
	return a.decodeHalves(func(raw json.RawMessage) (err error) {
		a.VNI, a.MAC, err = decodeVXLANData(raw)
		return err
	}, func(raw json.RawMessage) (err error) {
		a.VNI6, a.MAC6, err = decodeVXLANData(raw)
		return err
	})
}

func decodeVXLANData(raw json.RawMessage) (encap.VNI, encap.MAC, error) {
	if raw == nil {
		return encap.VNI{}, encap.MAC{}, fmt.Errorf("missing: want {\"VNI\":…,\"VtepMAC\":…}")
	}
	o, err := decodeObject(raw)
	if err != nil {
		return encap.VNI{}, encap.MAC{}, err
	}
	n, _, err := o.integer("VNI", 0, maxVNI)
	if err != nil {
		return encap.VNI{}, encap.MAC{}, err
	}
	vni, err := encap.NewVNI(uint32(n))
	if err != nil {
		return encap.VNI{}, encap.MAC{}, err
	}
	text, err := o.text("VtepMAC")
	if err != nil {
		return encap.VNI{}, encap.MAC{}, err
	}
	mac, err := encap.ParseMAC(text)
	if err != nil {
		return encap.VNI{}, encap.MAC{}, fmt.Errorf("VtepMAC %q is not an Ethernet address", text)
	}
	if !mac.IsUnicast() {
		return encap.VNI{}, encap.MAC{}, fmt.Errorf("VtepMAC %s is not the address of one VTEP", mac)
	}
	return vni, mac, nil
}
