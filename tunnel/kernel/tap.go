//go:build linux

package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel/gso"
)

// tap is a throw-away TUN device. It goes with its descriptor.
type tap struct {
	fd   int
	name string
	vnet bool // each packet has a virtio_net_hdr in front
	buf  []byte
}

// openTap opens a device, with virtio headers if they may be used and the kernel knows them.
func openTap(vnet bool) (*tap, error) {
	flags, err := tunFlags()
	if err != nil {
		return nil, err
	}
	vnet = vnet && flags&unix.IFF_VNET_HDR != 0
	fd, err := openTUN(TUNPath)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq("mprobe%d")
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if vnet {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("TUNSETIFF: %w", err)
	}
	t := &tap{fd: fd, name: request.Name(), vnet: vnet, buf: make([]byte, gso.InfoLen+maxPacket)}
	if t.vnet {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, gso.InfoLen); err != nil {
			t.close()
			return nil, fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
		}
	}
	return t, nil
}

// maxPacket is the largest IP packet, in bytes.
const maxPacket = 65535

func (t *tap) close() { unix.Close(t.fd) }

// What a TUN device may leave to its reader, as far as the features go.
const (
	offloadNone = 0
	offloadCsum = unix.TUN_F_CSUM
	offloadTSO  = offloadCsum | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	offloadUSO  = offloadTSO | unix.TUN_F_USO4 | unix.TUN_F_USO6
)

func (t *tap) setOffload(what int) error {
	if err := unix.IoctlSetInt(t.fd, unix.TUNSETOFFLOAD, what); err != nil {
		return fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	return nil
}

// write hands the kernel an IP packet.
func (t *tap) write(info gso.Info, p []byte) error {
	b := p
	if t.vnet {
		b = make([]byte, gso.InfoLen+len(p))
		info.Encode(b)
		copy(b[gso.InfoLen:], p)
	}
	return retry(func() error {
		_, err := unix.Write(t.fd, b)
		return err
	})
}

// read waits for a packet, and returns it borrowed until the next read.
func (t *tap) read(ctx context.Context, until time.Time) (info gso.Info, p []byte, err error) {
	for {
		n, err := unix.Read(t.fd, t.buf)
		switch {
		case err == nil:
			p = t.buf[:n]
			if t.vnet {
				info.Decode(p)
				p = p[gso.InfoLen:]
			}
			return info, p, nil
		case errors.Is(err, unix.EAGAIN):
			if err := waitReadable(ctx, t.fd, until); err != nil {
				return info, nil, err
			}
		case errors.Is(err, unix.EINTR):
		default:
			return info, nil, os.NewSyscallError("read TUN", err)
		}
	}
}

// tunFlags is which flags TUNSETIFF knows.
func tunFlags() (int, error) {
	fd, err := openTUN(TUNPath)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetInt(fd, unix.TUNGETFEATURES)
	if err != nil {
		return 0, fmt.Errorf("TUNGETFEATURES: %w", err)
	}
	return flags, nil
}

// probeTUNFlag asks whether TUNSETIFF knows a flag.
func probeTUNFlag(flag int) Probe {
	flags, err := tunFlags()
	if err != nil {
		return answered("TUN device", err)
	}
	if flags&flag == 0 {
		return Probe{Answer: No, Err: errors.New("the TUN driver does not list it")}
	}
	return given("")
}

// probeMultiQueue: IFF_MULTI_QUEUE (since Linux 3.8, c8d68e6be1c3), and sockets that share a port.
func probeMultiQueue() Probe {
	for _, p := range []Probe{probeTUNFlag(unix.IFF_MULTI_QUEUE), sharesPort()} {
		if p.Answer != Yes {
			return p
		}
	}
	return given("a TUN device can have several queues, and a UDP port several sockets")
}

// probeTUNNAPI: IFF_NAPI (since Linux 4.15, 943170998b20), and polling in a thread (since 5.12,
// 29863d41bb6e), which is turned on through /sys.
func probeTUNNAPI() Probe {
	return probeNAPI("/sys/class/net/lo/threaded")
}

func probeNAPI(threaded string) Probe {
	if p := probeTUNFlag(unix.IFF_NAPI); p.Answer != Yes {
		return p
	}
	const write = 2 // W_OK of access(2)
	switch err := unix.Access(threaded, write); {
	case err == nil:
		return given("a TUN device can be polled in a thread")
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES):
		return Probe{Answer: No, Err: err, Reason: fmt.Sprintf("%s: %v: give the service or container a /sys that it may write to", threaded, err)}
	default:
		if _, sysErr := os.Stat("/sys/class/net"); sysErr != nil {
			return answered("/sys", sysErr)
		}
		return answered(threaded, err, unix.ENOENT)
	}
}

// tryTap asks what a TUN device takes, by a device that is not up: what is written to it goes nowhere.
func (e *examiner) tryTap(t *tap) {
	e.try(TUNVnet, func() Probe {
		if !t.vnet {
			return Probe{Answer: No, Err: errors.New("the TUN driver does not list IFF_VNET_HDR")}
		}
		return awaiting()
	})
	offload := func(what int) func() Probe {
		return func() Probe {
			if err := t.setOffload(what); err != nil {
				return answered("TUN device", err, unix.EINVAL)
			}
			return awaiting()
		}
	}
	e.try(TUNTSO, offload(offloadTSO))
	e.try(TUNUSO, offload(offloadUSO))
	takes := func(proto byte) func() Probe {
		return func() Probe { return t.takes(proto) }
	}
	e.try(TUNTCPGRO, takes(unix.IPPROTO_TCP))
	e.try(TUNUDPGRO, takes(unix.IPPROTO_UDP))
}

// takes asks whether the kernel takes a superpacket, which it says before it looks whether the device is up:
// EINVAL if not, EIO if so (tun_get_user). Should somebody have brought the device up meanwhile, the packet
// still goes nowhere, for its source is a loopback address.
func (t *tap) takes(proto byte) Probe {
	f := flow{proto: proto, src: loopback, dst: loopback, ttl: 1}
	for _, s := range shapes {
		p := f.packet(s.payload())
		info := leaveChecksum(p, s.size)
		err := t.write(info, p)
		if err == nil || errors.Is(err, unix.EIO) {
			continue
		}
		refusal := answered(fmt.Sprintf("write of a superpacket of %v", s), err, unix.EINVAL)
		if refusal.Answer == No && proto == unix.IPPROTO_TCP {
			// Every kernel should take it: this is a fault, not an age.
			refusal.Reason = refusal.Err.Error()
		}
		return refusal
	}
	return awaiting()
}
