package web

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// Who may look, where a token is demanded: whoever has it. A program sends it with every request
// (Authorization: Bearer, RFC 6750). A browser sends it once, from a form, and gets a cookie. The cookie says until when
// it is good, and bears a MAC of that by the token: nothing is kept of it here, so it is good for the next daemon as well
// (--replace, a restart), and ends when the token is another.

const loginPath = "/login"

// leastToken is how many characters a token has at least: 32 of base64 hold 192 bits.
const leastToken = 32

// cookieTime is how long a cookie is good: a shift.
const cookieTime = 12 * time.Hour

// Token reads the token from a file, or makes the file (mode 0600) with a new one. made says which.
func Token(file string) (token string, made bool, err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		token, err = makeToken(file)
		return token, err == nil, err
	}
	if err != nil {
		return "", false, fmt.Errorf("--web-token-file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", false, fmt.Errorf("--web-token-file: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", false, fmt.Errorf("--web-token-file %s: others may read it (mode %04o): chmod 600 %s", file, mode, file)
	}
	content, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return "", false, fmt.Errorf("--web-token-file %s: %w", file, err)
	}
	token = strings.TrimSpace(string(content))
	if len(token) < leastToken || strings.ContainsAny(token, " \t\r\n") {
		return "", false, fmt.Errorf("--web-token-file %s: want one word of %d characters at least: remove the file, and the next start makes one", file, leastToken)
	}
	return token, false, nil
}

func makeToken(file string) (string, error) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	token := base64.RawURLEncoding.EncodeToString(raw)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("--web-token-file: make it: %w", err)
	}
	_, err = f.WriteString(token + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("--web-token-file: write %s: %w", file, err), os.Remove(file))
	}
	return token, nil
}

// mac is a MAC of some text by the token.
func (s *Server) mac(text string) []byte {
	m := hmac.New(sha256.New, []byte(s.cfg.Token))
	m.Write([]byte(text))
	return m.Sum(nil)
}

// isToken compares in constant time, of any length.
func (s *Server) isToken(shown string) bool {
	return subtle.ConstantTimeCompare(s.mac(shown), s.mac(s.cfg.Token)) == 1
}

// cookieName tells the pages of several hosts apart that one browser sees as ports of localhost (ssh -L): cookies are a
// host's, whatever the port (RFC 6265, section 8.5).
func (s *Server) cookieName() string {
	return "muslin-" + hex.EncodeToString(s.mac("name")[:6])
}

// sign is a cookie's value, good until some time.
func (s *Server) sign(until time.Time) string {
	text := strconv.FormatInt(until.Unix(), 10)
	return text + "." + hex.EncodeToString(s.mac("until "+text))
}

// isSigned is whether a cookie's value is ours and still good.
func (s *Server) isSigned(value string, now time.Time) bool {
	text, _, _ := strings.Cut(value, ".")
	until, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return false
	}
	good := s.sign(time.Unix(until, 0))
	return subtle.ConstantTimeCompare([]byte(good), []byte(value)) == 1 && now.Unix() < until
}

// isKnown is whether a request may see the page.
func (s *Server) isKnown(r *http.Request) bool {
	if s.cfg.Token == "" {
		return true
	}
	if scheme, shown, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return s.isToken(strings.TrimSpace(shown))
	}
	c, err := r.Cookie(s.cookieName())
	return err == nil && s.isSigned(c.Value, time.Now())
}

// known lets those through who may see it. A browser that opens the page is sent to the form.
func (s *Server) known(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.isKnown(r):
			next(w, r)
		case r.URL.Path == "/" && r.Header.Get("Authorization") == "":
			http.Redirect(w, r, loginPath, http.StatusSeeOther)
		default:
			w.Header().Set("WWW-Authenticate", `Bearer realm="muslin"`)
			http.Error(w, "this takes the token of --web-token-file: send it as \"Authorization: Bearer TOKEN\", or open the page in a browser", http.StatusUnauthorized)
		}
	}
}

// login trades the token for a cookie.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxLoginBody)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "no form: "+err.Error(), http.StatusBadRequest)
		return
	}
	if !s.isToken(strings.TrimSpace(r.PostForm.Get("token"))) {
		s.cfg.Log.Warn("somebody has given a wrong token for the page", "from", r.RemoteAddr)
		page := s.assets[loginPath]
		w.Header().Set("Content-Type", page.kind)
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, strings.Replace(string(page.content), "<!-- wrong -->", wrongToken, 1)) // the client is gone: nobody to tell
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: s.cookieName(), Value: s.sign(time.Now().Add(cookieTime)), Path: "/", MaxAge: int(cookieTime / time.Second),
		HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

const wrongToken = `<p class="alert" role="alert">That is not the token.</p>`
