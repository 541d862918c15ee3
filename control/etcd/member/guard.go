package member

import (
	"context"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"google.golang.org/grpc"
)

// A guard keeps from everything who shows a certificate of a user that the etcd does not have, as of a host that was
// taken out. The etcd itself asks for rights where keys are read and written. Without this such a host could still fill
// it with leases, and would go on hearing what a watch says that it began before.
type guard struct {
	// server is set once the etcd has been made. It may answer a moment before, by its own rules.
	server atomic.Pointer[etcdserver.EtcdServer]
}

func (g *guard) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any,
			error) {
			if err := g.check(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler,
		) error {
			ctx, cancel := context.WithCancel(s.Context())
			defer cancel()
			guarded := &stream{ServerStream: s, guard: g, ctx: ctx, cancel: cancel}
			if err := guarded.check(); err != nil {
				return err
			}
			return next(srv, guarded)
		}),
	}
}

// check refuses who is no user.
func (g *guard) check(ctx context.Context) error {
	s := g.server.Load()
	if s == nil || !s.AuthStore().IsAuthEnabled() {
		return nil
	}
	who, err := s.AuthInfoFromCtx(ctx)
	if err != nil {
		return err
	}
	if who == nil {
		return rpctypes.ErrGRPCUserEmpty
	}
	there := func() bool {
		_, err := s.AuthStore().UserGet(&etcdserverpb.AuthUserGetRequest{Name: who.Username})
		return err == nil
	}
	if there() {
		return nil
	}
	// This member may be behind the one that let the host in.
	if err := s.LinearizableReadNotify(ctx); err != nil {
		return rpctypes.ErrGRPCNoLeader
	}
	if there() {
		return nil
	}
	return rpctypes.ErrGRPCPermissionDenied
}

// A stream is asked again whenever the etcd's users have changed, and ends where its own is gone.
type stream struct {
	grpc.ServerStream
	guard  *guard
	ctx    context.Context //nolint:containedctx // it is that of the stream
	cancel context.CancelFunc
	at     atomic.Uint64 // the revision of the users when it was found good
}

// Context ends when the user is gone.
func (s *stream) Context() context.Context { return s.ctx }

// SendMsg sends nothing to who is no user any more.
func (s *stream) SendMsg(m any) error {
	if err := s.check(); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

// RecvMsg takes nothing from who is no user any more.
func (s *stream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.check()
}

func (s *stream) check() error {
	server := s.guard.server.Load()
	if server == nil {
		return nil
	}
	at := server.AuthStore().Revision()
	if at == s.at.Load() {
		return nil
	}
	if err := s.guard.check(s.ctx); err != nil {
		s.cancel()
		return err
	}
	s.at.Store(at)
	return nil
}
