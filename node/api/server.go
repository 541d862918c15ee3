package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Prefix of every path.
const prefix = "/v1/"

// Handler serves src. Lists are never null.
func Handler(src Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+prefix+"status", func(w http.ResponseWriter, _ *http.Request) { reply(w, src.Status()) })
	mux.HandleFunc("GET "+prefix+"peers", func(w http.ResponseWriter, _ *http.Request) { reply(w, list(src.Peers())) })
	mux.HandleFunc("GET "+prefix+"routes", func(w http.ResponseWriter, _ *http.Request) { reply(w, list(src.Routes())) })
	mux.HandleFunc("GET "+prefix+"drops", func(w http.ResponseWriter, _ *http.Request) { reply(w, list(src.Drops())) })
	mux.HandleFunc("GET "+prefix+"pods", func(w http.ResponseWriter, _ *http.Request) {
		pods, err := src.Pods()
		if err != nil {
			fail(w, http.StatusInternalServerError, err.Error())
			return
		}
		reply(w, list(pods))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, fmt.Sprintf("no such question: %s %q; ask GET %sstatus, peers, routes, pods or drops",
			r.Method, r.URL.Path, prefix))
	})
	return mux
}

func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func reply(w http.ResponseWriter, v any) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		fail(w, http.StatusInternalServerError, "encode the answer: "+err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// An error here is the client's hanging up.
	_, _ = w.Write(append(body, '\n'))
}

func fail(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(Error{Message: message})
}

// Limits of the server, so that a client that stalls holds nothing for long.
const (
	readTimeout  = 5 * time.Second
	writeTimeout = 10 * time.Second
	maxHeader    = 16 << 10
)

// NewServer makes a server for Handler's answers, or others, that no slow client can hold up.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, MaxHeaderBytes: maxHeader}
}

// ErrInUse is returned by Listen when somebody answers on the socket.
var ErrInUse = errors.New("the socket is in use")

// Listen opens the Unix socket at path for user and group. A socket that a killed daemon left is replaced; one that
// somebody answers on is not (ErrInUse), and neither is anything that is not a socket.
func Listen(path string) (net.Listener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("API socket: %w", err)
	case st.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("API socket: %s exists and is not a socket; remove it, or set another runDir", path)
	default:
		if err := removeStale(path); err != nil {
			return nil, err
		}
	}
	// Bound under another name and renamed when its mode is right: nobody sees it with the mode of the umask.
	temp := filepath.Join(filepath.Dir(path), ".new") // short: sun_path has 107 bytes
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(temp, 0o660), os.Rename(temp, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("API socket: %w", err), l.Close(), ignoreMissing(os.Remove(temp)))
	}
	return &listener{UnixListener: l, path: path}, nil
}

func removeStale(path string) error {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%s: %w: another warren runs with this runDir", path, ErrInUse)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("API socket: %w", err)
	}
	if err := ignoreMissing(os.Remove(path)); err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// A listener removes its socket when it is closed, under the name it has in the end.
type listener struct {
	*net.UnixListener
	path string
}

// Close implements net.Listener.
func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return errors.Join(err, ignoreMissing(os.Remove(l.path)))
}
