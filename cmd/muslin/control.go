package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/graceful"

	"muslin/tunnel/handover"
)

// The control socket: HTTP and JSON over a unix socket that only its owner may open (0600).
//
//	GET /v1/status      Status
//	GET /v1/route?to=   RouteAnswer
//	GET /v1/capture?…   a stream of packets (package capture)
//	POST /v1/trace      sight.Order: look for a packet; sight.Armed
//	GET /v1/trace?id=   sight.Report, of what was seen of it
//	POST /v1/handover   an upgrade to what package handover speaks
//	POST /v1/rescue/end ends a daemon that carries in flannel's place, and leaves giving it back to who asked

// listenControl makes the socket at path. One that a dead daemon left is replaced; a live daemon behind
// it is an error.
func listenControl(path string) (*net.UnixListener, error) {
	reached := dialControl(path)
	if reached == nil {
		return nil, fmt.Errorf("control socket %s: another muslin daemon answers there; stop it, take its place with --replace, or give this one its own --control, --state-dir, --tun-name and --subnet-file", path)
	}
	if _, err := removeDeadControl(path, reached); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("directory of the control socket: %w; give another place with --control", err)
	}
	// Nobody but root has business here. The file that bind makes gets the socket's own mode (unix_bind in
	// net/unix/af_unix.c), so that at no time anybody else can open it; the umask is the whole process's.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = os.NewSyscallError("fchmod", syscall.Fchmod(int(fd), 0o600)) })
		return errors.Join(err, failed)
	}}
	l, err := private.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w; give another place with --control", err)
	}
	return l.(*net.UnixListener), nil
}

// dialControl returns nil if a live daemon is behind the socket: it takes a connection and waits for a request. One that
// was killed a moment ago may take it, too; its end closes it. An error says why nobody is reached.
func dialControl(path string) error {
	const patience = 300 * time.Millisecond
	for range 10 {
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience)) // a unix socket has deadlines
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
	}
	return nil // somebody is there, whoever it is
}

// removeDeadControl removes the socket at path if a dead daemon left it, by what dialControl said of it, and says
// whether it did.
func removeDeadControl(path string, reached error) (bool, error) {
	if !errors.Is(reached, syscall.ECONNREFUSED) {
		return false, nil
	}
	// Any file but a listening socket gives that.
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("control socket %s: there is a file that is no socket; give another place with --control", path)
	}
	if err := os.Remove(path); err != nil {
		return false, fmt.Errorf("remove the control socket of a dead daemon: %w", err)
	}
	return true, nil
}

// controlHandler answers on the control socket.
func controlHandler(status func(selection) *control.Status, watch func(control.Peers), route, replace http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+control.StatusPath, func(w http.ResponseWriter, r *http.Request) { serveStatus(w, r, status, watch) })
	mux.HandleFunc("GET "+control.RoutePath, route)
	mux.HandleFunc("POST "+handover.Path, replace)
	return mux
}

// serveStatus answers with the peers that are asked for, and has those measured more often that somebody looks at.
func serveStatus(w http.ResponseWriter, r *http.Request, status func(selection) *control.Status, watch func(control.Peers)) {
	look, err := control.ParseLook(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	watch(look.Watch)
	answerJSON(w, status(those(look.Peers)))
}

// serveHTTP serves until ctx ends, and then finishes what it has begun to answer: what streams ends with its request's context.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	if err := graceful.Serve(ctx, srv, l); err != nil {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
