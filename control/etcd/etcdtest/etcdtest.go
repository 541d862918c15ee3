// Package etcdtest runs a real etcd for tests: the embedded server, on a free port of the loopback device and without
// TLS. It is for tests alone.
package etcdtest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"path"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// A Server is one etcd that a test can stop and start again.
type Server struct {
	t            testing.TB
	dir          string
	client, peer string // HOST:PORT
	etcd         *embed.Etcd

	mu       sync.Mutex
	requests map[string]int // by method, without streams' messages
}

// Requests are how often each method was called since the last call of Requests.
func (s *Server) Requests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.requests
	s.requests = map[string]int{}
	return out
}

// Asked is the number of requests since the last call of Requests.
func (s *Server) Asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, v := range s.requests {
		n += v
	}
	return n
}

func (s *Server) count(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[path.Base(method)]++
}

// Start runs an etcd until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, dir: t.TempDir(), client: FreePort(t), peer: FreePort(t), requests: map[string]int{}}
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
	cfg.GRPCAdditionalServerOptions = []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo,
			next grpc.UnaryHandler) (any, error) {
			s.count(info.FullMethod)
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo,
			next grpc.StreamHandler) error {
			s.count(info.FullMethod)
			return next(srv, ss)
		}),
	}
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
