package pulse

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"muslin/encap"
)

func TestEchoRequest(t *testing.T) {
	b := echoRequest(icmpEchoRequest, 0x1234, 0xfffe)
	if len(b) != 64 || b[0] != 8 || b[1] != 0 || binary.BigEndian.Uint32(b[4:]) != 0x1234fffe {
		t.Errorf("% x", b)
	}
	if encap.Sum(b, 0) != 0xffff {
		t.Errorf("checksum of % x", b)
	}
}

// The kernel at the other end of loopback answers, and the socket gets its replies and not our requests.
func TestSocket(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { testSocket(t, Open, netip.MustParseAddr("127.0.0.1")) })
	t.Run("IPv6", func(t *testing.T) { testSocket(t, Open6, netip.IPv6Loopback()) })
}

func testSocket(t *testing.T, open func() (Conn, error), to netip.Addr) {
	conn, err := open()
	if errors.Is(err, os.ErrPermission) {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(10*time.Second, func() { conn.Close() })
	defer watchdog.Stop()
	id := uint16(os.Getpid())
	for seq := range uint16(3) {
		before := time.Now().Truncate(time.Microsecond).Round(0)
		if err := conn.Send(to, id, seq); err != nil {
			t.Fatal(err)
		}
		for {
			r, err := conn.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if r.ID != id {
				continue // another process pings
			}
			if r.From != to || r.Seq != seq || r.At.Before(before) || r.At.After(time.Now()) {
				t.Errorf("reply %+v, want %d from %s at %s or a little later", r, seq, to, before)
			}
			break
		}
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Receive(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
