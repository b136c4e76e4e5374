//go:build linux

package kernel

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel/netnstest"
)

// The number is right when so many are taken and one more is not.
func TestUDPMaxSegments(t *testing.T) {
	n := UDPMaxSegments()
	t.Logf("%d datagrams in one send", n)
	if n != 1 && n < 63 {
		t.Fatalf("UDPMaxSegments() = %d", n)
	}
	if host, _ := Uname(); n == 1 && since(t, *rung(UDPGSO)) {
		t.Fatalf("no UDP_SEGMENT on %v", host)
	}
	if since(t, Rung{Since: "6.9"}) && n != 128 {
		t.Errorf("%d on a kernel that takes 128", n)
	}
	from, err := openUDP(loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer from.close()
	to, err := openUDP(loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer to.close()
	addr, err := to.local()
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{64, 200, 500} {
		if err := from.send(addr, make([]byte, n*size), size); err != nil {
			t.Errorf("%d of %d bytes: %v", n, size, err)
		}
	}
	if err := from.send(addr, make([]byte, (n+1)*500), 500); n > 1 && n != 63 && !errors.Is(err, unix.EINVAL) {
		t.Errorf("%d: %v", n+1, err)
	}
}

func TestAnswered(t *testing.T) {
	if p := answered("x", nil); p.Answer != Yes {
		t.Errorf("no error: %+v", p)
	}
	p := answered("x", unix.ENOSYS, unix.EINVAL, unix.ENOSYS)
	if p.Answer != No || !errors.Is(p.Err, unix.ENOSYS) {
		t.Errorf("not there: %+v", p)
	}
	p = answered("x", unix.ENOMEM, unix.EINVAL)
	if p.Answer != Unknown || p.Reason != "not tried: x: cannot allocate memory" {
		t.Errorf("no memory: %+v", p)
	}
}

// A No without a reason of its own names the version that would have it.
func TestTryNamesTheVersion(t *testing.T) {
	e := &examiner{found: make(chan Probe, maxFindings)}
	e.try(UDPGSO, func() Probe { return answered("UDP_SEGMENT", unix.ENOPROTOOPT, unix.ENOPROTOOPT) })
	p := <-e.found
	if p.Name != UDPGSO || p.Reason != "needs Linux 4.18 (UDP_SEGMENT: protocol not available)" || e.features.On(UDPGSO) {
		t.Errorf("%+v", p)
	}
	e.try(UDPGSO, func() Probe { t.Error("asked again"); return Probe{} })
}

func TestProbeNAPI(t *testing.T) {
	netnstest.RequireRoot(t)
	writable := filepath.Join(t.TempDir(), "absent")
	if p := probeNAPI(writable); p.Answer != No || p.Reason != "" || !strings.Contains(p.Err.Error(), "no such file") {
		t.Errorf("without the file: %+v", p)
	}
	if p := probeNAPI("/proc/version"); p.Answer == Yes && unix.Access("/proc/version", 2) != nil {
		t.Errorf("a file that cannot be written: %+v", p)
	}
}

func TestWaitReadable(t *testing.T) {
	s, err := openUDP(loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	far := time.Now().Add(time.Hour)
	if err := waitReadable(context.Background(), s.fd, time.Now().Add(time.Millisecond)); !errors.Is(err, errLate) {
		t.Errorf("nothing came: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := waitReadable(ctx, s.fd, far); !errors.Is(err, errLate) {
		t.Errorf("the context's deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	cancel()
	if err := waitReadable(ctx, s.fd, far); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	self, err := s.local()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.send(self, []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := waitReadable(context.Background(), s.fd, far); err != nil {
		t.Errorf("something came: %v", err)
	}
}
