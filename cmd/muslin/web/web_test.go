package web

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muslin/cmd/muslin/control"
)

const secret = "0123456789abcdef0123456789abcdef"

// daemon is one that a test changes.
type daemon struct {
	mu    sync.Mutex
	peers []control.PeerStatus
	asked atomic.Int64
	block chan struct{} // the next answer waits for it; nil: for nothing
}

func (d *daemon) networks() *control.Networks {
	d.asked.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.block != nil {
		<-d.block
	}
	s := &control.Status{Version: "1", State: control.StateRunning, Drops: map[string]uint64{"no-route": 1}, Skipped: map[string]int{}}
	s.Peers = append(s.Peers, d.peers...)
	return &control.Networks{Version: "1", Networks: []control.NetworkStatus{{State: s.State, Status: s}}}
}

func (d *daemon) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// start serves the page on loopback, with a tick that a test need not wait for long.
func start(t *testing.T, d *daemon, token string) (*Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Networks: d.networks, Addr: l.Addr().(*net.TCPAddr).AddrPort(), Token: token, Log: slog.New(slog.DiscardHandler)})
	s.hub.tick = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return s, "http://" + l.Addr().String()
}

func get(t *testing.T, c *http.Client, method, url string, header map[string]string, body string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		if k == "Host" {
			r.Host = v
		} else {
			r.Header.Set(k, v)
		}
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(content)
}

// stay does not follow redirects.
func stay() *http.Client {
	return &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func TestRequests(t *testing.T) {
	_, at := start(t, new(daemon), "")
	form := map[string]string{"Content-Type": "application/x-www-form-urlencoded"}
	for _, c := range []struct {
		method, path string
		header       map[string]string
		want         int
	}{
		{"GET", "/", nil, 200},
		{"HEAD", "/", nil, 200},
		{"GET", "/assets/app.js", nil, 200},
		{"HEAD", "/events", nil, 200},
		{"GET", "/assets/", nil, 404},
		{"GET", "/assets/index.html", nil, 404},
		{"GET", "/assets/..%2findex.html", nil, 404},
		{"GET", "/nothing", nil, 404},
		{"GET", "/login", nil, 404}, // there is no token to be shown
		{"POST", "/login", form, 404},
		{"POST", "/", nil, 405},
		{"PUT", "/", nil, 405},
		{"DELETE", "/events", nil, 405},
		{"OPTIONS", "/", nil, 405},
		{"POST", "/", map[string]string{"Origin": "http://evil.example"}, 403},
		{"GET", "/", map[string]string{"Host": "localhost:9000"}, 200}, // ssh -L
		{"GET", "/", map[string]string{"Host": "LOCALHOST"}, 200},
		{"GET", "/", map[string]string{"Host": "127.0.0.1"}, 200},
		{"GET", "/", map[string]string{"Host": "127.9.9.9:1"}, 200},
		{"GET", "/", map[string]string{"Host": "[::1]:80"}, 200},
		{"GET", "/", map[string]string{"Host": "evil.example"}, 421},
		{"GET", "/events", map[string]string{"Host": "localhost.evil.example:80"}, 421},
		{"GET", "/", map[string]string{"Host": "127.0.0.1.evil.example"}, 421},
		{"GET", "/", map[string]string{"Host": "192.0.2.1"}, 421},
		{"GET", "/assets/app.js", map[string]string{"Host": "evil.example"}, 421},
	} {
		resp, body := get(t, stay(), c.method, at+c.path, c.header, "")
		if resp.StatusCode != c.want {
			t.Errorf("%s %s %v: %s, want %d\n%s", c.method, c.path, c.header, resp.Status, c.want, body)
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s %s: %s is %q", c.method, c.path, name, got)
			}
		}
	}
	for _, part := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, part) {
			t.Errorf("the policy lacks %s", part)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		t.Errorf("the policy is lax: %s", policy)
	}
	resp, _ := get(t, stay(), "GET", at+"/assets/app.js", nil, "")
	again, body := get(t, stay(), "GET", at+"/assets/app.js", map[string]string{"If-None-Match": resp.Header.Get("ETag")}, "")
	if again.StatusCode != http.StatusNotModified || body != "" {
		t.Errorf("asked again with its ETag: %s", again.Status)
	}
}

// Nothing that a page loads comes from elsewhere or stands in the page itself: the policy would refuse it.
func TestAssetsAreTheirOwn(t *testing.T) {
	inline := regexp.MustCompile(`(?i)<style|<script(?:[^>]*)>[^<]|\son[a-z]+=|\sstyle=|javascript:|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`)
	outside := regexp.MustCompile(`(?i)(?:https?:)?//[a-z0-9-]+\.[a-z]`)
	n := 0
	for path, a := range loadAssets() {
		n++
		text := string(a.content)
		if m := inline.FindString(text); m != "" {
			t.Errorf("%s has %q", path, m)
		}
		for _, m := range outside.FindAllString(strings.ReplaceAll(text, "http://www.w3.org/2000/svg", ""), -1) {
			t.Errorf("%s names %q", path, m)
		}
		if a.kind == "" {
			t.Errorf("%s has no type", path)
		}
	}
	if n < 10 {
		t.Errorf("%d assets", n)
	}
}

func TestToken(t *testing.T) {
	s, at := start(t, new(daemon), secret)
	bearer := func(token string) map[string]string { return map[string]string{"Authorization": "Bearer " + token} }
	cookie := func(value string) map[string]string {
		return map[string]string{"Cookie": s.cookieName() + "=" + value}
	}
	other := New(Config{Token: secret + "x"})
	good := s.sign(time.Now().Add(time.Hour))
	for name, c := range map[string]struct {
		method, path string
		header       map[string]string
		want         int
	}{
		"page without":             {"GET", "/", nil, 303},
		"events without":           {"GET", "/events", nil, 401},
		"head of events without":   {"HEAD", "/events", nil, 401},
		"form":                     {"GET", "/login", nil, 200},
		"style of the form":        {"GET", "/assets/style.css", nil, 200},
		"bearer":                   {"GET", "/", bearer(secret), 200},
		"bearer of events":         {"HEAD", "/events", bearer(secret), 200},
		"scheme in small letters":  {"GET", "/", map[string]string{"Authorization": "bearer " + secret}, 200},
		"wrong bearer":             {"GET", "/", bearer(secret[1:] + "x"), 401},
		"shorter bearer":           {"GET", "/", bearer(secret[1:]), 401},
		"empty bearer":             {"GET", "/", bearer(""), 401},
		"basic":                    {"GET", "/", map[string]string{"Authorization": "Basic " + secret}, 401},
		"cookie":                   {"GET", "/", cookie(good), 200},
		"cookie with the token":    {"GET", "/", cookie(secret), 303},
		"cookie that has expired":  {"GET", "/", cookie(s.sign(time.Now().Add(-time.Second))), 303},
		"cookie for longer":        {"GET", "/", cookie("9" + good), 303},
		"cookie of another token":  {"GET", "/", cookie(other.sign(time.Now().Add(time.Hour))), 303},
		"cookie of another's name": {"GET", "/", map[string]string{"Cookie": other.cookieName() + "=" + good}, 303},
		"name of this host only":   {"GET", "/", map[string]string{"Authorization": "Bearer " + secret, "Host": "evil.example"}, 421},
	} {
		resp, _ := get(t, stay(), c.method, at+c.path, c.header, "")
		if resp.StatusCode != c.want {
			t.Errorf("%s: %s, want %d", name, resp.Status, c.want)
		}
		if resp.StatusCode == http.StatusUnauthorized && !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("%s: WWW-Authenticate is %q", name, resp.Header.Get("WWW-Authenticate"))
		}
	}

	login := func(c *http.Client, token string, header map[string]string) (*http.Response, string) {
		all := map[string]string{"Content-Type": "application/x-www-form-urlencoded"}
		for k, v := range header {
			all[k] = v
		}
		return get(t, c, "POST", at+"/login", all, url.Values{"token": {token}}.Encode())
	}
	if resp, body := login(stay(), "wrong", nil); resp.StatusCode != 401 || resp.Header.Get("Set-Cookie") != "" || !strings.Contains(body, `role="alert"`) {
		t.Errorf("login with a wrong token: %s %q\n%s", resp.Status, resp.Header.Get("Set-Cookie"), body)
	}
	if resp, _ := login(stay(), secret, map[string]string{"Sec-Fetch-Site": "cross-site"}); resp.StatusCode != 403 {
		t.Errorf("login from another site: %s", resp.Status)
	}
	if resp, _ := login(stay(), strings.Repeat("x", 2*maxLoginBody), nil); resp.StatusCode != 400 {
		t.Errorf("login with a large form: %s", resp.Status)
	}
	resp, _ := login(stay(), " "+secret+"\n", nil) // as it is pasted
	if resp.StatusCode != 303 || resp.Header.Get("Location") != "/" {
		t.Fatalf("login: %s to %q", resp.Status, resp.Header.Get("Location"))
	}
	c := resp.Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.MaxAge != 12*3600 || strings.Contains(c.Value, secret) {
		t.Errorf("the cookie is %v", c)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar}
	if resp, body := login(browser, secret, nil); resp.StatusCode != 200 || !strings.Contains(body, "app.js") {
		t.Errorf("after the login: %s\n%s", resp.Status, body)
	}
}

// Where others reach the address, the Host may be any: what they have to know is the token.
func TestHostBeyondLoopback(t *testing.T) {
	s := New(Config{Addr: netip.MustParseAddrPort("192.0.2.1:80"), Token: secret, Log: slog.New(slog.DiscardHandler)})
	for header, want := range map[string]int{"": 303, "Bearer " + secret: 200} {
		w := &recorder{header: make(http.Header)}
		r, err := http.NewRequest("GET", "http://node.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		s.Handler().ServeHTTP(w, r)
		if w.code != want {
			t.Errorf("with %q: %d, want %d", header, w.code, want)
		}
	}
}

type recorder struct {
	header http.Header
	code   int
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(c int)   { r.code = c }
func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = 200
	}
	return len(b), nil
}

func TestTokenFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web-token")
	token, made, err := Token(file)
	if err != nil || !made || len(token) < leastToken {
		t.Fatalf("%q %v %v", token, made, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if again, made, err := Token(file); err != nil || made || again != token {
		t.Errorf("%q %v %v, want %q", again, made, err, token)
	}
	if other, _, err := Token(file + "2"); err != nil || other == token {
		t.Errorf("another file has %q, %v", other, err)
	}
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"open to others": {secret, 0o644, "chmod 600"},
		"to the group":   {secret, 0o640, "chmod 600"},
		"short":          {"hunter2", 0o600, "32 characters"},
		"empty":          {"", 0o600, "32 characters"},
		"two words":      {secret + " " + secret, 0o600, "one word"},
	} {
		if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, c.mode); err != nil {
			t.Fatal(err)
		}
		_, _, err := Token(file)
		if err == nil || !strings.Contains(err.Error(), c.want) || c.content != "" && strings.Contains(err.Error(), c.content) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := Token(filepath.Join(t.TempDir(), "none", "token")); err == nil {
		t.Error("a directory that is not there is made")
	}
}

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]string{
		"": "invalid AddrPort", "9000": "127.0.0.1:9000", ":9000": "127.0.0.1:9000", "localhost:9000": "127.0.0.1:9000", "127.0.0.1:1": "127.0.0.1:1", "[::1]:9000": "[::1]:9000",
		"0.0.0.0:80": "0.0.0.0:80", "192.0.2.1:65535": "192.0.2.1:65535", "[::ffff:127.0.0.1]:80": "127.0.0.1:80",
	} {
		if got, err := ParseAddr(in); err != nil || got.String() != want {
			t.Errorf("%q: %v, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"x", "0", "65536", "-1", ":", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "example.com:80", "::1", "1:2:3"} {
		if got, err := ParseAddr(in); err == nil || !strings.Contains(err.Error(), "want a port") {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for addr, ok := range map[string]bool{"127.0.0.1:80": true, "[::1]:80": true, "0.0.0.0:80": false, "192.0.2.1:80": false, "[::]:80": false} {
		a := netip.MustParseAddrPort(addr)
		if err := CheckToken(a, ""); (err == nil) != ok {
			t.Errorf("%s without a token: %v", addr, err)
		}
		if err := CheckToken(a, "file"); err != nil {
			t.Errorf("%s with a token: %v", addr, err)
		}
	}
	if CheckToken(netip.AddrPort{}, "file") == nil {
		t.Error("a token for no page is taken")
	}
}

// events reads a stream.
type events struct {
	t    *testing.T
	body io.ReadCloser
	in   *bufio.Scanner
}

func follow(t *testing.T, at string) *events {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", at+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	in := bufio.NewScanner(resp.Body)
	in.Buffer(nil, 4<<20)
	return &events{t, resp.Body, in}
}

// next is the next event's name and data.
func (e *events) next() (name string, data any) {
	e.t.Helper()
	for e.in.Scan() {
		line := e.in.Text()
		if rest, ok := strings.CutPrefix(line, "event: "); ok {
			name = rest
		}
		if rest, ok := strings.CutPrefix(line, "data: "); ok {
			if err := json.Unmarshal([]byte(rest), &data); err != nil {
				e.t.Fatal(err)
			}
			return name, data
		}
	}
	e.t.Fatal("the stream has ended: ", e.in.Err())
	return "", nil
}

// merge applies a JSON merge patch, as RFC 7396 has it in section 2.
func merge(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	t, ok := target.(map[string]any)
	if !ok {
		t = make(map[string]any)
	}
	for k, v := range p {
		if v == nil {
			delete(t, k)
		} else {
			t[k] = merge(t[k], v)
		}
	}
	return t
}

// plain is a document as JSON has it, without nulls.
func plain(t *testing.T, d any) any {
	t.Helper()
	data, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return merge(nil, out)
}

func peersOf(doc any) map[string]any {
	network := doc.(map[string]any)["networks"].(map[string]any)[""].(map[string]any)
	peers, _ := network["peers"].(map[string]any)
	return peers
}

func TestEvents(t *testing.T) {
	d := &daemon{peers: []control.PeerStatus{{Subnet: "10.244.1.0/24", PublicIP: "192.0.2.1"}, {Subnet: "10.244.2.0/24"}}}
	s, at := start(t, d, "")
	time.Sleep(3 * s.hub.tick)
	if n := d.asked.Load(); n != 0 {
		t.Errorf("the daemon was asked %d times while nobody looks on", n)
	}
	e := follow(t, at)
	name, doc := e.next()
	if name != "whole" || len(peersOf(doc)) != 2 {
		t.Fatalf("first %s, %v", name, doc)
	}
	if explained := doc.(map[string]any)["drops"].(map[string]any)["no-route"]; explained == nil {
		t.Error("no word on what no-route means")
	}
	d.set(func() {
		d.peers[0].RxBytes = 99
		d.peers = append(d.peers[:1], control.PeerStatus{Subnet: "10.244.3.0/24"})
	})
	for {
		name, patch := e.next()
		if name != "patch" {
			t.Fatalf("%s %v, want a patch", name, patch)
		}
		if networks := patch.(map[string]any)["networks"]; networks == nil {
			continue // nothing but the time
		} else if text := fmt.Sprint(patch); strings.Contains(text, "192.0.2.1") {
			t.Errorf("the patch repeats what is as it was: %s", text)
		}
		doc = merge(doc, patch)
		break
	}
	peers := peersOf(doc)
	if len(peers) != 2 || peers["10.244.2.0/24"] != nil || peers["10.244.1.0/24"].(map[string]any)["rx_bytes"] != 99.0 {
		t.Errorf("after the patch: %v", peers)
	}

	// A daemon that hangs for a while; who comes then gets the whole.
	block := make(chan struct{})
	d.set(func() { d.block = block })
	time.Sleep(5 * s.hub.tick)
	late := follow(t, at)
	close(block)
	d.set(func() { d.block = nil })
	if name, _ := late.next(); name != "whole" {
		t.Errorf("who comes late gets %s first", name)
	}
	if name, _ := late.next(); name != "patch" {
		t.Errorf("and then %s", name)
	}

	// When all have gone the daemon has its rest.
	e.body.Close()
	late.body.Close()
	for late := time.Now().Add(5 * time.Second); s.hub.streams.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("streams do not end with their clients")
		}
	}
	time.Sleep(2 * s.hub.tick)
	n := d.asked.Load()
	time.Sleep(5 * s.hub.tick)
	if d.asked.Load() != n {
		t.Error("the daemon is asked on when nobody looks on")
	}
}

// A page that was away for some frames gets the whole, not a patch of what it does not have.
func TestEventsMissed(t *testing.T) {
	d := &daemon{peers: []control.PeerStatus{{Subnet: "10.244.1.0/24"}}}
	h := newHub(&Config{Networks: d.networks}, time.Hour)
	h.advance(true)
	w := &gated{header: make(http.Header), gate: make(chan struct{}), out: make(chan string)}
	r, err := http.NewRequestWithContext(t.Context(), "GET", "/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.serve(w, r.WithContext(ctx))
	}()
	kind := func() string {
		w.gate <- struct{}{}
		text, _, _ := strings.Cut(<-w.out, "\n")
		return text
	}
	got := []string{kind(), kind()}
	h.advance(false)
	got = append(got, kind())
	h.advance(false)
	w.gate <- struct{}{} // this one is on its way while
	<-w.out
	h.advance(false)
	time.Sleep(20 * time.Millisecond) // it waits in Write with a patch,
	h.advance(false)                  // and these two pass
	h.advance(false)
	got = append(got, kind(), kind())
	if want := []string{"retry: 1000", "event: whole", "event: patch", "event: patch", "event: whole"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	cancel()
	<-done
}

// gated is a client that takes what is written when the test lets it.
type gated struct {
	header http.Header
	gate   chan struct{}
	out    chan string
}

func (g *gated) Header() http.Header              { return g.header }
func (g *gated) WriteHeader(int)                  {}
func (g *gated) Flush()                           {}
func (g *gated) SetWriteDeadline(time.Time) error { return nil }
func (g *gated) SetReadDeadline(time.Time) error  { return nil }
func (g *gated) Write(b []byte) (int, error) {
	<-g.gate
	g.out <- string(b)
	return len(b), nil
}

func TestStreamsAreLimited(t *testing.T) {
	s, at := start(t, new(daemon), "")
	var all []*events
	for range maxStreams {
		e := follow(t, at)
		e.next()
		all = append(all, e)
	}
	resp, body := get(t, stay(), "GET", at+"/events", nil, "")
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %s %s", resp.Status, body)
	}
	all[0].body.Close()
	for late := time.Now().Add(5 * time.Second); s.hub.streams.Load() == maxStreams; time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("a place is not given back")
		}
	}
	follow(t, at).next()
}

// A page says which peers it has on the screen. Whoever may not see the page may not say anything.
func TestLook(t *testing.T) {
	watched := make(chan string, 10)
	cfg := Config{Addr: netip.MustParseAddrPort("127.0.0.1:9470"), Token: strings.Repeat("t", leastToken), Log: slog.New(slog.DiscardHandler),
		Watch: func(network string, peers control.Peers) { watched <- fmt.Sprint(network, " ", peers.All, " ", peers) }}
	h := New(cfg).Handler()
	for query, want := range map[string]struct {
		status int
		told   string
	}{
		"?network=blue&peers=10.1.2.0/24,fd00::/64": {204, "blue false 10.1.2.0/24,fd00::/64"},
		"?network=blue&peers=":                      {204, ""}, // not all
		"?network=blue&peers=x":                     {400, ""},
	} {
		for _, token := range []string{cfg.Token, "another"} {
			r := httptest.NewRequest("GET", "http://localhost/look"+query, nil)
			r.Header.Set("Authorization", "Bearer "+token)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			status, told := want.status, want.told
			if token != cfg.Token {
				status, told = 401, ""
			}
			got := ""
			if len(watched) > 0 {
				got = <-watched
			}
			if w.Code != status || got != told {
				t.Errorf("%s: %d, told %q; want %d, %q", query, w.Code, got, status, told)
			}
		}
	}
}

// TestDiff: whatever changes, the old document with the patch is the new one.
func TestDiff(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func() *document {
		d := &daemon{}
		for i := range rnd.IntN(4) {
			yes := rnd.IntN(2) == 0
			now := time.Unix(int64(rnd.IntN(3)), 0)
			loss := float64(rnd.IntN(2))
			p := control.PeerStatus{Subnet: fmt.Sprintf("10.244.%d.0/24", i), RxBytes: uint64(rnd.IntN(3)), Way: []string{"", "direct"}[rnd.IntN(2)]}
			if rnd.IntN(2) == 0 {
				p.Up, p.LastRx, p.Loss = &yes, &now, &loss
			}
			d.peers = append(d.peers, p)
		}
		n := d.networks()
		s := n.Networks[0].Status
		if rnd.IntN(2) == 0 {
			s.Drops = map[string]uint64{"ecn": uint64(rnd.IntN(2))}
			s.Warnings = []string{"a", "b"}[:rnd.IntN(3)]
		}
		if rnd.IntN(3) == 0 {
			n.Networks = append(n.Networks, control.NetworkStatus{Name: "green", Error: "x"})
		}
		h := newHub(&Config{}, time.Hour)
		doc := h.document(n, time.UnixMilli(int64(rnd.IntN(2))))
		if rnd.IntN(2) == 0 {
			doc.Networks[""].Doctor = &report{Time: time.Unix(int64(rnd.IntN(2)), 0), Findings: []finding{{ID: "a"}}[:rnd.IntN(2)]}
		}
		return doc
	}
	same := 0
	for range 500 {
		old, next := random(), random()
		patch := changes(old, next)
		got := merge(plain(t, old), mustJSON(t, patch))
		if want := plain(t, next); !reflect.DeepEqual(got, want) {
			t.Fatalf("from %v\nwith %v\nis   %v\nwant %v", plain(t, old), patch, got, want)
		}
		if p, changed := diff(reflect.ValueOf(old), reflect.ValueOf(old)); changed {
			t.Fatalf("a document differs from itself by %v", p)
		}
		if len(patch.(map[string]any)) == 0 {
			same++
		}
	}
	if same > 400 {
		t.Errorf("%d of 500 pairs are the same", same)
	}
}

func mustJSON(t *testing.T, v any) any {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFindings(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	all := make(reports)
	read := func() *report { return all.read([]string{first, second}) }
	if r := read(); r != nil {
		t.Errorf("from no file: %v", r)
	}
	write := func(file, content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(second, `{"time":"2026-11-27T03:00:00Z","findings":[{"id":"ip-forward","severity":"broken","fix":"sysctl"}],"more":1}`)
	r := read()
	if r == nil || len(r.Findings) != 1 || r.Findings[0].ID != "ip-forward" || r.Time.Hour() != 3 || r.Error != "" {
		t.Errorf("%+v", r)
	}
	if read() != r {
		t.Error("what has not changed is read again")
	}
	write(first, `{"time":`)
	if r := read(); r == nil || r.Error == "" {
		t.Errorf("of half a file: %+v", r)
	}
	write(first, `{"time":"2026-11-27T04:00:00Z","findings":[]}`)
	if r := read(); r == nil || r.Error != "" || r.Time.Hour() != 4 {
		t.Errorf("%+v", r)
	}
}
