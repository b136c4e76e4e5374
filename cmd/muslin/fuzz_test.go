package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/tunnel/handover"
)

// FuzzControl: whatever is said to the control socket, it does not panic, asks for the status only by GET, lets
// itself be replaced only by POST, and answers the next one who asks rightly.
func FuzzControl(f *testing.F) {
	f.Add([]byte("GET /v1/status HTTP/1.1\r\nHost: muslin\r\n\r\n"))
	f.Add([]byte("POST /v1/status HTTP/1.1\r\nHost: muslin\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("GET /../v1//status HTTP/1.0\r\n\r\n"))
	f.Add([]byte("GET /v1/status HTTP/1.1\r\nHost: muslin\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"))
	f.Add([]byte("GET /v1/route?to=10.244.3.7 HTTP/1.1\r\nHost: muslin\r\n\r\n"))
	f.Add([]byte("POST " + handover.Path + " HTTP/1.1\r\nHost: muslin\r\nConnection: Upgrade\r\nUpgrade: muslin-handover\r\n\r\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Add([]byte{0x16, 3, 1, 0, 5})

	var asked, replaced atomic.Int64
	path := filepath.Join(f.TempDir(), "control.sock")
	l, err := listenControl(path)
	if err != nil {
		f.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	handler := controlHandler(func(selection) *control.Status { asked.Add(1); return &control.Status{State: control.StateRunning} }, func(control.Peers) {}, new(daemon).serveRoute,
		func(w http.ResponseWriter, _ *http.Request) {
			replaced.Add(1)
			http.Error(w, "not now", http.StatusConflict)
		})
	go func() { done <- serveHTTP(ctx, l, handler) }()
	f.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		before, places := asked.Load(), replaced.Load()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(data); err == nil {
			_ = conn.(*net.UnixConn).CloseWrite()
		}
		r := bufio.NewReader(conn)
		answered := int64(0)
		for {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				break
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				answered++
				var s control.Status
				if err == nil && json.Unmarshal(body, &s) != nil && len(body) > 0 {
					t.Fatalf("answered %q", body)
				}
			}
		}
		reads := bytes.Contains(data, []byte("GET ")) || bytes.Contains(data, []byte("HEAD "))
		if n := asked.Load() - before; n > 0 && !reads || answered > n {
			t.Fatalf("asked %d times and answered %d times for %q", n, answered, data)
		}
		if replaced.Load() > places && !bytes.Contains(data, []byte("POST ")) {
			t.Fatalf("asked to be replaced by %q", data)
		}
		if s, err := control.AskStatus(context.Background(), path); err != nil || s.State != control.StateRunning {
			t.Fatalf("afterwards the status is %+v, %v", s, err)
		}
	})
}
