//go:build linux

package link

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// DefaultPort is the server's TCP and UDP port: assigned to nothing, below the ports that Linux gives to
// outgoing connections (32768 and up), and used by none of flannel, etcd, Kubernetes, iperf3, WireGuard.
const DefaultPort = 7885

// protocol is the first thing a server says. The number changes with the meaning of what follows.
const protocol = "muslin bench link 1"

// Limits, of both sides.
const (
	MinEach    = 100 * time.Millisecond // one measure
	MaxEach    = 60 * time.Second
	MaxStreams = 16      // TCP streams at once
	MinRate    = 1000000 // bits per second, the least that a limit may be: some packets a second for each stream

	maxFrame       = 4 << 10          // bytes of one message
	maxPacketRate  = 20000            // datagrams per second that the server sends
	maxPacket      = 65535            // bytes of an IPv4 packet
	maxPending     = 16               // connections that have not shown the token yet
	maxConns       = 2 * MaxStreams   // connections of the client
	handshakeTime  = 5 * time.Second  // until a connection has shown the token; until the client gives up
	sessionHold    = 5 * time.Second  // the server stays with a client that long between connections
	streamGrace    = 10 * time.Second // a TCP job's whole time beyond its measure
	datagramsGrace = 60 * time.Second // a UDP job's beyond twice that: the search for sizes is in it
	firstByteTime  = 3 * time.Second  // until a stream's first byte
)

// Jobs: what a connection is for, seen from the client.
const (
	jobHello  = "hello"  // nothing: is the path there?
	jobSend   = "send"   // the client streams, the server counts and reports
	jobFetch  = "fetch"  // the server streams from the client's first byte on, the client counts
	jobEcho   = "echo"   // the server sends back what it gets
	jobPacket = "packet" // orders about UDP datagrams
	jobBye    = "bye"    // the server is free for another client
)

// jobWords tell the person at the server what a job does, between the client's address and the server's.
var jobWords = map[string]string{
	jobHello:  "reaches",
	jobSend:   "sends TCP to",
	jobFetch:  "takes TCP from",
	jobEcho:   "exchanges TCP messages with",
	jobPacket: "exchanges UDP packets with",
	jobBye:    "has ended with",
}

// NewToken makes the secret that lets a client in: 128 random bits, as letters and digits.
func NewToken() string { return rand.Text() }

const nonceLen, macLen, cookieLen = 16, sha256.Size, 16

// greeting is the server's first message.
type greeting struct {
	Protocol string `json:"protocol"`
	Nonce    []byte `json:"nonce"`
}

// request is the client's first message. It goes behind its HMAC.
type request struct {
	Session string `json:"session"` // random, one for all connections of a client
	Job     string `json:"job"`
	Millis  int64  `json:"milliseconds"` // of the measure, from MinEach to MaxEach
	Rate    int64  `json:"rate"`         // bits per second of this stream; 0 is no limit
}

func (r *request) check() error {
	switch {
	case len(r.Session) < 16 || len(r.Session) > 64:
		return fmt.Errorf("a session's name of %d letters: want 16 to 64", len(r.Session))
	case r.Millis < MinEach.Milliseconds() || r.Millis > MaxEach.Milliseconds():
		return fmt.Errorf("%d ms: want %v to %v", r.Millis, MinEach, MaxEach)
	case r.Rate < 0:
		return fmt.Errorf("rate %d: want 0 or more", r.Rate)
	}
	if jobWords[r.Job] == "" {
		return fmt.Errorf("job %q is not known here: use the same version of muslin on both nodes", r.Job)
	}
	return nil
}

// each is how long the measure is to take.
func (r *request) each() time.Duration { return time.Duration(r.Millis) * time.Millisecond }

// lasts is how long the server lets the job take.
func (r *request) lasts() time.Duration {
	if r.Job == jobPacket {
		return 2*r.each() + datagramsGrace
	}
	return r.each() + streamGrace
}

// accept is the server's answer to a request.
type accept struct {
	Error  string `json:"error,omitempty"`
	MTU    int    `json:"mtu"`              // bytes, of the server's interface on this path; 0 unknown
	Rate   int64  `json:"rate"`             // bits per second that the server allows; 0 is no limit
	Cookie []byte `json:"cookie,omitempty"` // of a UDP job
}

// report is what the counting server says at the end of a stream.
type report struct {
	Error   string  `json:"error,omitempty"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// Orders of a UDP job.
const (
	orderCount  = "count"  // forget what was counted; datagrams 0 to Count-1 will come
	orderReport = "report" // say what was counted
	orderSend   = "send"   // send datagrams 0 to Count-1, Size bytes each, at PerSecond
	orderProbe  = "probe"  // send datagram Seq, Size bytes
)

// order is the client's message within a UDP job. Sizes are of the whole IP packet, in bytes.
type order struct {
	Do        string `json:"do"`
	Size      int    `json:"size,omitempty"`
	Count     int    `json:"count,omitempty"`
	PerSecond int    `json:"per_second,omitempty"`
	Seq       uint32 `json:"seq,omitempty"`
}

// answer is the server's to an order.
type answer struct {
	Error  string `json:"error,omitempty"`
	TooBig bool   `json:"too_big,omitempty"` // the server's own interface does not take this size
	Sent   int    `json:"sent,omitempty"`    // datagrams that its kernel took
	tally
}

// Each message is its length (uint16, big-endian) and JSON.
//
//	 0                   1                   2
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 …
//	+-------------------------------+-----------
//	|            length             | JSON …      a request: 32 bytes of HMAC, JSON …
//	+-------------------------------+-----------

func writeFrame(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeBytes(w, body)
}

func writeBytes(w io.Writer, body []byte) error {
	if len(body) > maxFrame {
		return fmt.Errorf("a message of %d bytes: at most %d", len(body), maxFrame)
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(body))), body...))
	return err
}

func readFrame(r io.Reader, v any) error {
	body, err := readBytes(r)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

func readBytes(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > maxFrame {
		return nil, fmt.Errorf("a message of %d bytes: at most %d", n, maxFrame)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return body, nil
}

var errToken = errors.New("the token is wrong")

// sign is the proof that the sender of a request has the token. The nonce has one length, so that what is
// signed reads in one way only.
func sign(token string, nonce, body []byte) []byte {
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte(protocol))
	mac.Write(nonce)
	mac.Write(body)
	return mac.Sum(nil)
}

func writeRequest(w io.Writer, token string, nonce []byte, r request) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeBytes(w, append(sign(token, nonce, body), body...))
}

// readRequest looks at nothing of a request before its sender has shown the token.
func readRequest(r io.Reader, token string, nonce []byte) (request, error) {
	var req request
	frame, err := readBytes(r)
	if err != nil {
		return req, err
	}
	if len(frame) < macLen || !hmac.Equal(frame[:macLen], sign(token, nonce, frame[macLen:])) {
		return req, errToken
	}
	return req, json.Unmarshal(frame[macLen:], &req)
}

// A datagram, both ways; the rest is padding up to the size that is tried.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------------------------------------------------------+
//	|                    cookie of the job, 128 bits …              |
//	+---------------+-----------------------------------------------+
//	|     kind      |               sequence number …
//	+---------------+------------------------- … ---+---------------+

// Kinds of datagram.
const (
	kindEcho  = 'e' // the server sends it back as it is
	kindProbe = 'p' // the server sends the header back
	kindCount = 'c' // the receiver counts it
)

const (
	headerLen = cookieLen + 1 + 4
	outerLen  = 20 + 8 // IPv4 and UDP headers
	minPacket = outerLen + headerLen
)

func putHeader(b, cookie []byte, kind byte, seq uint32) {
	copy(b, cookie)
	b[cookieLen] = kind
	binary.BigEndian.PutUint32(b[cookieLen+1:], seq)
}

// header takes a datagram apart; ok is false where it is too short.
func header(b []byte) (cookie []byte, kind byte, seq uint32, ok bool) {
	if len(b) < headerLen {
		return nil, 0, 0, false
	}
	return b[:cookieLen], b[cookieLen], binary.BigEndian.Uint32(b[cookieLen+1:]), true
}
