//go:build linux

// Package handover passes what a daemon runs on to its successor, which takes its place while packets flow.
//
// The two take turns on one connection. Whatever may fail happens before anything is given up, and what was
// given up is taken back when the other one does not answer for it in time:
//
//	successor                        predecessor
//	hello   ──────────────────────►              which handover it speaks
//	        ◄──────────────────────  offer       what there is, and all descriptors; or abort
//	  opens on them, sets up, checks
//	ready   ──────────────────────►              or fail
//	                                   stops its workers between two batches
//	        ◄──────────────────────  yours       the packets, with what has changed since the offer
//	  starts its workers
//	taken   ──────────────────────►              or fail
//	                                   gives up what else there is, part by part, in the same way
//	                                   closes everything
//	        ◄──────────────────────  left
//
// A predecessor that goes on after all says abort; then the successor ends. One that ends without a word is
// dead, and the successor takes all that is left, from whichever point. The package knows nothing of what is
// handed over: that is its callers' affair.
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// Protocol is the handover that this version speaks. It changes when one side would misunderstand the other;
// what is only added, a reader passes over.
const Protocol = 1

// Parts of what a daemon does, in the order in which they are handed over.
const (
	Packets = "packets" // the data path, and the lease
	Store   = "store"   // the embedded etcd
)

// Hello is what a successor says of itself.
type Hello struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"` // of the program, for people
}

// Offer is what a predecessor runs on.
type Offer struct {
	Version string          `json:"version"`
	Parts   []string        `json:"parts"` // Packets first
	About   json.RawMessage `json:"about"`
	Files   []File          `json:"-"`
}

// File is a descriptor by the name of its use, which several may share; their order counts. It stays its
// owner's to close: what is sent is another one of the same open file.
type File struct {
	Name string
	File *os.File
}

// Named returns the files of one name.
func (o *Offer) Named(name string) (all []*os.File) {
	for _, f := range o.Files {
		if f.Name == name {
			all = append(all, f.File)
		}
	}
	return all
}

// Close closes the files.
func (o *Offer) Close() {
	for _, f := range o.Files {
		f.File.Close()
	}
}

// Limits are how long one side waits for the other.
type Limits struct {
	Prepare time.Duration // the predecessor, from the offer to ready; the successor, for any answer
	Packets time.Duration // the predecessor, for its packets to be taken: nobody carries them meanwhile
	Part    time.Duration // the predecessor, for any other part to be taken
}

// DefaultLimits leave room for a busy machine. What a TUN device's queue holds at 1,000 packets a second
// outlasts Packets.
var DefaultLimits = Limits{Prepare: 30 * time.Second, Packets: 500 * time.Millisecond, Part: 40 * time.Second}

// ErrDied says that the other process is gone.
var ErrDied = errors.New("the other process is gone")

// The kinds of message.
const (
	hello = "hello"
	offer = "offer"
	ready = "ready"
	fail  = "fail"
	yours = "yours"
	taken = "taken"
	abort = "abort"
	left  = "left"
)

// message is one turn. Part, Reason and Body are empty where the kind has no use for them.
type message struct {
	Kind   string          `json:"kind"`
	Part   string          `json:"part,omitempty"`
	Reason string          `json:"reason,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
	Names  []string        `json:"files,omitempty"` // of the descriptors that come with it
	files  []*os.File
}

// expect receives a message of the kind, which must come within limit. An abort or a failure is an
// error that gives the other's reason.
func (c *conn) expect(kind string, limit time.Duration) (*message, error) {
	m, err := c.receive(limit)
	switch {
	case err != nil:
		return nil, err
	case m.Kind == kind:
		return m, nil
	case m.Kind == fail || m.Kind == abort:
		return nil, &OtherError{m.Reason}
	}
	m.close()
	return nil, fmt.Errorf("the other process says %q where %q was to come", m.Kind, kind)
}

// OtherError is why the other side does not go on, in its words.
type OtherError struct{ Reason string }

func (e *OtherError) Error() string { return e.Reason }

// Peer is the process at the other end and its user, as they were when the connection was made.
func Peer(c *net.UnixConn) (pid, uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	return peer(raw)
}
