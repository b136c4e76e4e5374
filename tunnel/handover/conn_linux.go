package handover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conn sends messages: four bytes of length, big-endian, then JSON. A message's descriptors come with the
// first of its bytes (SCM_RIGHTS, unix(7)).
type conn struct{ unix *net.UnixConn }

const (
	// longest is more than any message: ten thousand leases are 2 MB.
	longest = 64 << 20
	// most is SCM_MAX_FD, the most descriptors that the kernel takes in one message.
	most = 253
	// sendLimit is how long a message may take to be sent: the other side may have stopped reading.
	sendLimit = 5 * time.Second
)

func (c conn) send(m *message) error {
	fds := make([]int, len(m.files))
	for i, f := range m.files {
		var err error
		if fds[i], err = descriptor(f); err != nil {
			return err
		}
	}
	if len(fds) > most {
		return fmt.Errorf("%d descriptors to hand over, and at most %d can be", len(fds), most)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	packet := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := c.unix.SetWriteDeadline(time.Now().Add(sendLimit)); err != nil {
		return c.explain(err)
	}
	n, _, err := c.unix.WriteMsgUnix(packet, oob, nil)
	if err == nil {
		_, err = c.unix.Write(packet[n:])
	}
	if err != nil {
		return fmt.Errorf("say %s: %w", m.Kind, c.explain(err))
	}
	return nil
}

// descriptor is f's, in the mode in which it is. Fd would make that of a listener's copy a blocking one, and so the
// listener's own: nothing but another connection would end its Accept any more.
func descriptor(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = raw.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}

// say sends what is to be answered. That the other one is gone is found out at the next receive, after
// whatever it said last.
func (c conn) say(m *message) error {
	if err := c.send(m); !errors.Is(err, ErrDied) {
		return err
	}
	return nil
}

// receive takes the next message. Its files are the caller's to close.
func (c conn) receive(limit time.Duration) (*message, error) {
	if err := c.unix.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, c.explain(err)
	}
	var length [4]byte
	oob := make([]byte, unix.CmsgSpace(4*most))
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(length[:], oob)
	m := new(message)
	if oobn > 0 {
		var bad error
		if m.files, bad = filesOf(oob[:oobn]); err == nil {
			err = bad
		}
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("the kernel did not pass on every descriptor; raise the limit of open files (ulimit -n)")
	}
	if err == nil {
		err = c.rest(m, length, n)
	}
	if err != nil {
		m.close()
		return nil, c.explain(err)
	}
	return m, nil
}

// rest reads a message of whose length n bytes are there.
func (c conn) rest(m *message, length [4]byte, n int) error {
	if _, err := io.ReadFull(c.unix, length[n:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(length[:])
	if size > longest {
		return fmt.Errorf("a message of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.unix, body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, m); err != nil {
		return fmt.Errorf("a message that makes no sense: %w", err)
	}
	if len(m.Names) != len(m.files) {
		return fmt.Errorf("%d descriptors under %d names", len(m.files), len(m.Names))
	}
	return nil
}

func filesOf(oob []byte) (all []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, rightsErr := unix.ParseUnixRights(&messages[i])
		if rightsErr != nil {
			err = rightsErr
			continue
		}
		for _, fd := range fds {
			all = append(all, os.NewFile(uintptr(fd), ""))
		}
	}
	return all, err
}

func (m *message) close() {
	for _, f := range m.files {
		f.Close()
	}
}

// explain makes ErrDied of every way in which a connection can be over.
func (c conn) explain(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return ErrDied
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errLate
	}
	return err
}

// errLate is a limit that is over.
var errLate = errors.New("the other process does not answer")

func peer(raw syscall.RawConn) (pid, uid int, err error) {
	var who *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { who, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		return 0, 0, fmt.Errorf("getsockopt SO_PEERCRED: %w", err)
	}
	return int(who.Pid), int(who.Uid), nil
}
