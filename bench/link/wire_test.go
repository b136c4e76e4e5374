//go:build linux

package link

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	want := order{Do: orderSend, Size: 1200, Count: 7, PerSecond: 3, Seq: 9}
	if err := writeFrame(&b, want); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(b.Bytes())
	var got order
	if err := readFrame(&b, &got); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for cut := range whole {
		if err := readFrame(bytes.NewReader(whole[:cut]), &got); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut to %d bytes: %v", cut, err)
		}
	}
}

func TestFramesMalformed(t *testing.T) {
	for name, frame := range map[string][]byte{
		"no JSON":      {0, 3, 'a', 'b', 'c'},
		"empty":        {0, 0},
		"other shape":  append([]byte{0, 4}, `[17]`...),
		"too long":     append(binary.BigEndian.AppendUint16(nil, maxFrame+1), make([]byte, maxFrame+1)...),
		"size no size": append([]byte{0, 14}, `{"size":"17"} `...),
	} {
		var o order
		if err := readFrame(bytes.NewReader(frame), &o); err == nil {
			t.Errorf("%s: read as %+v", name, o)
		}
	}
	if err := writeFrame(io.Discard, order{Do: strings.Repeat("x", maxFrame)}); err == nil {
		t.Error("a message that is too long was written")
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x0d{\"do\":\"send\"}"))
	f.Add([]byte{0, 0})
	f.Add([]byte{255, 255, '{'})
	f.Fuzz(func(t *testing.T, frame []byte) {
		var o order
		if readFrame(bytes.NewReader(frame), &o) != nil {
			return
		}
		var b bytes.Buffer
		var again order
		if err := errors.Join(writeFrame(&b, o), readFrame(&b, &again)); err != nil || again != o {
			t.Errorf("%+v became %+v, %v", o, again, err)
		}
	})
}

// FuzzReadRequest: without the token nothing is read, and with it what was signed, as it was.
func FuzzReadRequest(f *testing.F) {
	f.Add([]byte(`{"session":"ssssssssssssssss","job":"echo","millis":1000,"rate":5}`), []byte("nonce"))
	f.Add([]byte(`{}`), []byte{})
	f.Fuzz(func(t *testing.T, body, nonce []byte) {
		nonce = append(nonce, make([]byte, nonceLen)...)[:nonceLen]
		var signed bytes.Buffer
		if writeBytes(&signed, append(sign("token", nonce, body), body...)) != nil {
			return // too long
		}
		if got, err := readRequest(bytes.NewReader(signed.Bytes()), "other", nonce); !errors.Is(err, errToken) || got != (request{}) {
			t.Fatalf("with another token %+v, %v", got, err)
		}
		got, err := readRequest(bytes.NewReader(signed.Bytes()), "token", nonce)
		if errors.Is(err, errToken) {
			t.Fatal("the right token is refused")
		}
		if err != nil || got.check() != nil {
			return
		}
		var b bytes.Buffer
		if err := writeRequest(&b, "token", nonce, got); err != nil {
			t.Fatal(err)
		}
		if again, err := readRequest(&b, "token", nonce); err != nil || again != got {
			t.Fatalf("%+v became %+v, %v", got, again, err)
		}
		if _, err := readRequest(bytes.NewReader(body), "token", nonce); err == nil {
			t.Fatal("an unsigned request was taken")
		}
	})
}

// FuzzHeader: a datagram's header is what was put there, or there is none.
func FuzzHeader(f *testing.F) {
	f.Add(make([]byte, headerLen))
	f.Add([]byte("too short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		cookie, kind, seq, ok := header(b)
		if ok != (len(b) >= headerLen) {
			t.Fatalf("%d bytes: %v", len(b), ok)
		}
		if !ok {
			return
		}
		again := make([]byte, headerLen)
		putHeader(again, cookie, kind, seq)
		if !bytes.Equal(again, b[:headerLen]) {
			t.Fatalf("%x became %x", b[:headerLen], again)
		}
	})
}

func TestRequestNeedsToken(t *testing.T) {
	nonce := bytes.Repeat([]byte{1}, nonceLen)
	want := request{Session: strings.Repeat("s", 16), Job: jobEcho, Millis: 1000, Rate: 5}
	var b bytes.Buffer
	if err := writeRequest(&b, "token", nonce, want); err != nil {
		t.Fatal(err)
	}
	frame := b.Bytes()
	if got, err := readRequest(bytes.NewReader(frame), "token", nonce); err != nil || got != want {
		t.Fatalf("%+v, %v; want %+v", got, err, want)
	}
	if bytes.Contains(frame, []byte("token")) {
		t.Error("the token is in the message")
	}
	changed := func(at int) []byte {
		c := bytes.Clone(frame)
		c[at] ^= 1
		return c
	}
	for name, c := range map[string]struct {
		frame        []byte
		token, nonce string
	}{
		"other token":   {frame, "tokem", string(nonce)},
		"longer token":  {frame, "tokenn", string(nonce)},
		"no token":      {frame, "", string(nonce)},
		"other nonce":   {frame, "token", strings.Repeat("\x02", nonceLen)},
		"mac changed":   {changed(2), "token", string(nonce)},
		"mac's end":     {changed(2 + macLen - 1), "token", string(nonce)},
		"job changed":   {changed(len(frame) - 3), "token", string(nonce)},
		"shorter mac":   {append([]byte{0, macLen - 1}, make([]byte, macLen-1)...), "token", string(nonce)},
		"nothing at it": {append([]byte{0, macLen}, make([]byte, macLen)...), "token", string(nonce)},
		"empty":         {[]byte{0, 0}, "token", string(nonce)},
	} {
		if got, err := readRequest(bytes.NewReader(c.frame), c.token, []byte(c.nonce)); !errors.Is(err, errToken) || got != (request{}) {
			t.Errorf("%s: %+v, %v; want %v", name, got, err, errToken)
		}
	}
}

func TestRequestLimits(t *testing.T) {
	good := request{Session: strings.Repeat("s", 26), Job: jobSend, Millis: 3000}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*request){
		"no session":    func(r *request) { r.Session = "" },
		"long session":  func(r *request) { r.Session = strings.Repeat("s", 65) },
		"no time":       func(r *request) { r.Millis = 0 },
		"negative time": func(r *request) { r.Millis = -3000 },
		"long time":     func(r *request) { r.Millis = MaxEach.Milliseconds() + 1 },
		"negative rate": func(r *request) { r.Rate = -1 },
		"no job":        func(r *request) { r.Job = "" },
		"unknown job":   func(r *request) { r.Job = "format-disk" },
	} {
		r := good
		if change(&r); r.check() == nil {
			t.Errorf("%s: %+v is let through", name, r)
		}
	}
}

func TestDatagramHeader(t *testing.T) {
	b := make([]byte, headerLen+3)
	want := bytes.Repeat([]byte{7}, cookieLen)
	putHeader(b, want, kindProbe, 0x01020304)
	cookie, kind, seq, ok := header(b)
	if !ok || !bytes.Equal(cookie, want) || kind != kindProbe || seq != 0x01020304 {
		t.Errorf("%x %c %x %v", cookie, kind, seq, ok)
	}
	for n := range headerLen {
		if _, _, _, ok := header(b[:n]); ok {
			t.Errorf("a datagram of %d bytes has a header", n)
		}
	}
}

func TestToken(t *testing.T) {
	a, b := NewToken(), NewToken()
	if a == b || len(a) < 26 {
		t.Errorf("%s, %s", a, b)
	}
	if body, err := json.Marshal(a); err != nil || len(body) != len(a)+2 {
		t.Errorf("%s needs quoting", a)
	}
}
