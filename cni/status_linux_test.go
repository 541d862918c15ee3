package cni_test

import (
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/internal/apisocket"
	"github.com/warren-net/warren/node/api"
)

// pretended answers as a daemon does; the plugin asks for the status only.
type pretended struct{ api.Source }

func (pretended) Status() api.Status { return api.Status{Node: "a"} }

func healthy(l net.Listener) error { return api.NewServer(api.Handler(pretended{})).Serve(l) }

// daemon serves the node's API socket until the test ends, or the returned function is called.
func (n *node) daemon(serve func(net.Listener) error) (stop func()) {
	n.t.Helper()
	l, err := api.Listen(filepath.Join(n.run(), apisocket.Name))
	if err != nil {
		n.t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := serve(l); !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
			n.t.Errorf("serving the socket: %v", err)
		}
	})
	stop = sync.OnceFunc(func() {
		if err := l.Close(); err != nil {
			n.t.Error(err)
		}
		serving.Wait()
	})
	n.t.Cleanup(stop)
	return stop
}

// says is a daemon that says the same to everybody, and then nothing more.
func says(text string) func(net.Listener) error {
	var said []net.Conn
	return each(func(c net.Conn) {
		_, _ = c.Write([]byte(text)) // whoever asked may be gone
		said = append(said, c)       // lest the garbage collector close it
	})
}

// hangsUp is a daemon that says the same to everybody and is gone.
func hangsUp(text string) func(net.Listener) error {
	return each(func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1000))
		_, _ = c.Write([]byte(text))
		_ = c.Close()
	})
}

func each(f func(net.Conn)) func(net.Listener) error {
	return func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			f(c)
		}
	}
}

// STATUS waits for no daemon for long, and the other commands don't ask it.
func TestStatusOfDaemonThatHangs(t *testing.T) {
	header := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
	for _, tc := range []struct {
		name  string
		serve func(net.Listener) error
		want  string
		quick bool
	}{
		{"no word", says(""), "hangs", false},
		{"half a header", says(header[:20]), "hangs", false},
		{"half an answer", says(header + `{"node": "a"`), "hangs", false},
		{"hangs up", hangsUp(""), "hangs up without", true},
		{"breaks off", hangsUp(header + `{"node": "a"`), "is not whole", true},
		{"another program", hangsUp("SSH-2.0-OpenSSH_9.2p1\r\n"), "another program has its socket", true},
		{"an error", hangsUp("HTTP/1.0 500 Whatever\r\n\r\n"), "answers 500 Whatever", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			stop := n.daemon(tc.serve)
			conf := n.conf("1.1.0", cni.ModeRouted)
			begin := time.Now()
			_, err := n.do(call{command: "STATUS", conf: conf})
			took := time.Since(begin)
			if err == nil || err.Code != types.ErrPluginNotAvailable || !strings.Contains(err.Msg, tc.want) {
				t.Errorf("STATUS says %+v, want code %d and %q", err, types.ErrPluginNotAvailable, tc.want)
			}
			if tc.want == "hangs" && err != nil && !strings.Contains(err.Msg, "`kill -QUIT ") {
				t.Errorf("STATUS does not say what to do: %s", err.Msg)
			}
			if took > 20*time.Second || tc.quick == (took > 4*time.Second) {
				t.Errorf("STATUS took %v", took)
			}
			p := n.pod(conf)
			n.must(p.withPrev("CHECK", n.must(p.call("ADD"))))
			p.del()
			stop()
			n.daemon(healthy)
			n.must(call{command: "STATUS", conf: conf})
		})
	}
}
