package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"muslin/tunnel"
)

// pcapng writes packets as pcapng (draft-ietf-opsawg-pcapng), which has an interface for each point. Sections, interfaces and
// statistics are pcapgo's; packets are our own, as pcapgo's have neither a comment nor a direction.
type pcapng struct {
	to         *countingWriter
	out        *bufio.Writer // written to to between two blocks alone
	ng         *pcapgo.NgWriter
	interfaces map[tunnel.Points]int
	buf        []byte
}

// about is what a file says of itself.
type about struct {
	Version string
	Device  string // where the packets were seen
	Filter  string
	Snap    int
	Points  tunnel.Points
}

// linkRaw is LINKTYPE_RAW as what it is called within libpcap on Linux and most systems (DLT_RAW). Files of several interfaces have
// it: libpcap translates the first interface's type and compares the next ones' as they are (pcap_ng_next_packet in
// sf-pcapng.c, 1.10), so that tcpdump refuses those whose number in files is another one. Wireshark knows both.
const linkRaw layers.LinkType = 12

func newPcapng(to io.Writer, a *about) (*pcapng, error) {
	link := layers.LinkTypeRaw
	if len(names(a.Points)) > 1 {
		link = linkRaw
	}
	counted := &countingWriter{Writer: to}
	p := &pcapng{to: counted, out: bufio.NewWriterSize(counted, 1<<16), interfaces: make(map[tunnel.Points]int)}
	for i, name := range names(a.Points) {
		point, _ := ParsePoints([]string{name})
		face := pcapgo.NgInterface{
			Name: name, Description: a.Device, Filter: a.Filter, LinkType: link, SnapLength: uint32(a.Snap), OS: runtime.GOOS, TimestampResolution: 9,
		}
		var err error
		if i == 0 {
			options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Hardware: runtime.GOARCH, OS: runtime.GOOS, Application: "muslin " + a.Version}}
			p.ng, err = pcapgo.NewNgWriterInterface(p.out, face, options)
		} else {
			_, err = p.ng.AddInterface(face)
		}
		if err != nil {
			return nil, fmt.Errorf("write the capture's beginning: %w", err)
		}
		p.interfaces[point] = i
	}
	return p, p.flush()
}

// Of a packet block (section 4.3 of the draft).
const (
	blockPacket = 6

	optionEnd     = 0
	optionComment = 1
	optionFlags   = 2

	directionIn  = 1
	directionOut = 2
)

// write appends a packet's block, and returns its length.
func (p *pcapng) write(r *Record) (int, error) {
	b := binary.LittleEndian.AppendUint32(p.buf[:0], blockPacket)
	b = append(b, 0, 0, 0, 0) // the length, at both ends
	b = binary.LittleEndian.AppendUint32(b, uint32(p.interfaces[r.Point]))
	at := uint64(r.At.UnixNano())
	b = binary.LittleEndian.AppendUint32(b, uint32(at>>32))
	b = binary.LittleEndian.AppendUint32(b, uint32(at))
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	const data = 28
	b, length := r.packet(b)
	binary.LittleEndian.PutUint32(b[20:], uint32(len(b)-data))
	binary.LittleEndian.PutUint32(b[24:], uint32(length))
	b = pad(b)
	way := uint32(directionOut)
	if r.Inbound {
		way = directionIn
	}
	b = option(b, optionFlags, binary.LittleEndian.AppendUint32(nil, way))
	if c := r.comment(); c != "" {
		b = option(b, optionComment, []byte(c))
	}
	b = option(b, optionEnd, nil)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)+4))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(b)+4))
	p.buf = b
	whole := p.to.n
	if p.out.Available() < len(b) {
		if err := p.flush(); err != nil {
			return 0, err
		}
		whole = p.to.n
	}
	if _, err := p.out.Write(b); err != nil { // of one that is larger than the buffer
		return 0, errors.Join(err, p.cut(whole))
	}
	return len(b), nil
}

// countingWriter counts what was written.
type countingWriter struct {
	io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n += int64(n)
	return n, err
}

// cut has a file end where its last whole block does, after a write for which there was no room: so readers take it.
func (p *pcapng) cut(whole int64) error {
	f, ok := p.to.Writer.(*os.File)
	if !ok {
		return nil
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	return f.Truncate(whole)
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func option(b []byte, code uint16, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...))
}

// comment is what is to be known of the packet beside its bytes.
func (r *Record) comment() string {
	c := ""
	if r.Point == tunnel.PointDrop {
		c = "dropped: " + r.Reason
		if why := tunnel.ExplainDrop(r.Reason); why != "" {
			c += ": " + why
		}
	}
	if r.Segments > 1 {
		if c != "" {
			c += "; "
		}
		c += fmt.Sprintf("superpacket: %d packets of %d bytes of payload, cut afterwards", r.Segments, r.Size)
	}
	return c
}

func (p *pcapng) flush() error {
	whole := p.to.n
	err := p.ng.Flush()
	if err == nil {
		err = p.out.Flush()
	}
	if err != nil {
		return errors.Join(err, p.cut(whole))
	}
	return nil
}

// end writes the counts, of all points together.
func (p *pcapng) end(c Counts) error {
	err := p.ng.WriteInterfaceStats(0, pcapgo.NgInterfaceStatistics{PacketsReceived: c.Captured + c.Lost, PacketsDropped: c.Lost})
	if err != nil {
		return err
	}
	return p.flush()
}
