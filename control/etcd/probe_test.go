package etcd_test

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"

	"github.com/warren-net/warren/control/etcd"
)

// TestSameProblemTwice: what is wrong is said in the same words as long as it is the same, as the log has it once.
func TestSameProblemTwice(t *testing.T) {
	for name, c := range map[string]struct {
		serve func(net.Conn)
		want  string
	}{
		"silent": {func(net.Conn) {}, "it takes connections and says nothing"},
		"reset": {func(c net.Conn) {
			_ = c.(*net.TCPConn).SetLinger(0) // of a connection that is open
			_ = c.Close()
		}, "connection reset by peer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					t.Cleanup(func() { _ = conn.Close() })
					c.serve(conn)
				}
			}()
			client, err := etcd.NewClient(etcd.Config{Endpoints: []string{l.Addr().String()}, Network: "test", Node: "a",
				StateDir: t.TempDir(), TLS: &tls.Config{MinVersion: tls.VersionTLS13}})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			var texts [2]string
			for i := range texts {
				texts[i] = client.Explain(context.DeadlineExceeded).Error()
			}
			if texts[0] != texts[1] || strings.Contains(texts[0], "->") ||
				!strings.Contains(texts[0], l.Addr().String()+": "+c.want) {
				t.Errorf("%q, then %q; want %q in both", texts[0], texts[1], c.want)
			}
		})
	}
}
