// Package etcdtest runs a real etcd for tests: the embedded server, on a free port of the loopback device and without
// TLS. It is for tests alone.
package etcdtest

import (
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// A Server is one etcd that a test can stop and start again.
type Server struct {
	t            testing.TB
	dir          string
	client, peer string // HOST:PORT
	etcd         *embed.Etcd
}

// Start runs an etcd until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, dir: t.TempDir(), client: FreePort(t), peer: FreePort(t)}
	t.Cleanup(s.Stop)
	s.Restart()
	return s
}

// FreePort is a HOST:PORT on which nothing listens.
func FreePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Endpoints are where clients reach it.
func (s *Server) Endpoints() []string { return []string{s.client} }

// Stop stops it; the data stays.
func (s *Server) Stop() {
	if s.etcd != nil {
		s.etcd.Close()
		s.etcd = nil
	}
}

// Wipe has the next start find no data, as if the etcd were another one.
func (s *Server) Wipe() {
	s.t.Helper()
	s.Stop()
	s.dir = s.t.TempDir()
}

// Restart starts it with the data that it had.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	cfg := embed.NewConfig()
	cfg.Dir, cfg.Name = s.dir, "test"
	at := func(hostport string) []url.URL { return []url.URL{{Scheme: "http", Host: hostport}} }
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = at(s.client), at(s.client)
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = at(s.peer), at(s.peer)
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = true
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		s.t.Fatal(fmt.Errorf("start etcd: %w", err))
	}
	s.etcd = e
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		s.t.Fatal("etcd does not become ready")
	}
}
