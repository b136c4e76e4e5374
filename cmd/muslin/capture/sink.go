package capture

import (
	"bufio"
	"fmt"
)

// sink is where packets, or the lines of flows, go.
type sink interface {
	packet(r *Record) error
	line(b []byte) error
	flush() error
	close(c Counts) error
}

// pcapngSink writes packets to files.
type pcapngSink struct {
	files *files
	about *about
	ng    *pcapng
	all   Counts
	here  Counts // of this file
}

func newPcapngSink(f *files, a *about) (*pcapngSink, error) {
	s := &pcapngSink{files: f, about: a}
	to, err := f.open()
	if err != nil {
		return nil, err
	}
	s.ng, err = newPcapng(to, a)
	return s, err
}

func (s *pcapngSink) packet(r *Record) error {
	// What is around the data, and a comment, are shorter than that.
	const around = 512
	if s.files.full(len(r.Data) + around) {
		if err := s.ng.end(s.here); err != nil {
			return fmt.Errorf("write the capture's end: %w", err)
		}
		to, err := s.files.advance()
		if err != nil {
			return err
		}
		if s.ng, err = newPcapng(to, s.about); err != nil {
			return err
		}
		s.here = Counts{}
	}
	n, err := s.ng.write(r)
	if err != nil {
		return fmt.Errorf("write a packet: %w", err)
	}
	s.files.written += int64(n)
	s.here.Captured++
	s.all.Captured++
	return nil
}

func (s *pcapngSink) line([]byte) error { return nil }

func (s *pcapngSink) flush() error {
	if err := s.ng.flush(); err != nil {
		return fmt.Errorf("write packets: %w", err)
	}
	return nil
}

func (s *pcapngSink) close(c Counts) error {
	s.here.Lost = c.Lost
	if err := s.ng.end(s.here); err != nil {
		return fmt.Errorf("write the capture's end: %w", err)
	}
	return s.files.close()
}

// lineSink writes text: packets for a person, or flows.
type lineSink struct {
	files  *files
	out    *bufio.Writer
	format func(b []byte, r *Record) []byte
	buf    []byte
}

func newLineSink(f *files, format func(b []byte, r *Record) []byte) (*lineSink, error) {
	to, err := f.open()
	if err != nil {
		return nil, err
	}
	return &lineSink{files: f, out: bufio.NewWriter(to), format: format}, nil
}

func (s *lineSink) packet(r *Record) error {
	s.buf = s.format(s.buf[:0], r)
	return s.line(s.buf)
}

func (s *lineSink) line(b []byte) error {
	if s.files.full(len(b) + 1) {
		if err := s.flush(); err != nil {
			return err
		}
		to, err := s.files.advance()
		if err != nil {
			return err
		}
		s.out.Reset(to)
	}
	s.files.written += int64(len(b) + 1)
	_, err := s.out.Write(b)
	if err == nil {
		err = s.out.WriteByte('\n')
	}
	if err != nil {
		return fmt.Errorf("write a line: %w", err)
	}
	return nil
}

func (s *lineSink) flush() error {
	if err := s.out.Flush(); err != nil {
		return fmt.Errorf("write lines: %w", err)
	}
	return nil
}

func (s *lineSink) close(Counts) error {
	if err := s.flush(); err != nil {
		return err
	}
	return s.files.close()
}
