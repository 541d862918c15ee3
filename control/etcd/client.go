package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	backoffconfig "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.uber.org/zap"
)

// A Client asks one network's etcd. It is safe for concurrent use.
type Client struct {
	cfg  Config
	keys keys
	etcd *clientv3.Client
}

// Connections to a member that is gone are noticed in that time.
const (
	pingEvery   = 10 * time.Second
	pingTimeout = 5 * time.Second
)

// NewClient makes a client; nothing is sent before the first question. Close ends it.
func NewClient(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.FollowMembers {
		cfg.Endpoints = union(cfg.Endpoints, rememberedMembers(&cfg))
	}
	return dial(cfg)
}

func dial(cfg Config) (*Client, error) {
	if cfg.connect != nil {
		return &Client{cfg: cfg, keys: keysOf(cfg.Network), etcd: cfg.connect()}, nil
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            endpointURLs(cfg.Endpoints, cfg.TLS != nil),
		TLS:                  cfg.TLS,
		DialTimeout:          cfg.Timeout,
		DialKeepAliveTime:    pingEvery,
		DialKeepAliveTimeout: pingTimeout,
		Logger:               zap.NewNop(), // what matters comes back as an error
		// gRPC's own would have a node wait for two minutes after the etcd was away for some.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: cfg.Timeout,
			Backoff: backoffconfig.Config{BaseDelay: cfg.Retry, Multiplier: 1.6, Jitter: 0.2, MaxDelay: cfg.MaxRetry}})},
	})
	if err != nil {
		return nil, fmt.Errorf("etcd endpoints %s: %w", strings.Join(cfg.Endpoints, ", "), err)
	}
	return &Client{cfg: cfg, keys: keysOf(cfg.Network), etcd: c}, nil
}

// Close ends the client.
func (c *Client) Close() error { return c.etcd.Close() }

// Etcd is the client below, for those who keep records of their own in the network.
func (c *Client) Etcd() *clientv3.Client { return c.etcd }

// Network is the name of the client's network.
func (c *Client) Network() string { return c.cfg.Network }

func endpointURLs(list []string, encrypted bool) []string {
	out := make([]string, 0, len(list))
	for _, e := range list {
		if !strings.Contains(e, "://") {
			e = map[bool]string{false: "http://", true: "https://"}[encrypted] + e
		}
		out = append(out, e)
	}
	return out
}

// bounded bounds one question.
func (c *Client) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.cfg.Timeout)
}

// Errors on which callers decide.
var (
	ErrUnreachable = errors.New("etcd does not answer")
	ErrNoQuorum    = errors.New("etcd has no quorum")
	ErrDenied      = errors.New("etcd refuses this host")
)

// Explain turns an error of Etcd into one that says what is wrong and what to do. Without an answer it looks at the
// endpoints by itself, as etcd's client does not say what kept it from talking to them.
func (c *Client) Explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if s, ok := status.FromError(err); ok && s.Code() == codes.Canceled {
		return fmt.Errorf("%w: %w", context.Canceled, err)
	}
	switch is := func(target error) bool { return isEtcd(err, target) }; {
	case is(rpctypes.ErrNoLeader), is(rpctypes.ErrTimeout), is(rpctypes.ErrLeaderChanged),
		is(rpctypes.ErrTimeoutDueToLeaderFail), is(rpctypes.ErrTimeoutDueToConnectionLost),
		is(rpctypes.ErrTimeoutWaitAppliedIndex):
		return fmt.Errorf("%w (%w): start the members that are missing, `warren control members` shows them; traffic "+
			"goes on meanwhile, and changes wait", ErrNoQuorum, err)
	case is(rpctypes.ErrPermissionDenied), is(rpctypes.ErrUserEmpty), is(rpctypes.ErrAuthFailed),
		is(rpctypes.ErrUserNotFound), is(rpctypes.ErrInvalidAuthToken):
		return fmt.Errorf("%w (%w): its certificate does not give it the right to network %q; if it was removed from the "+
			"network, join it again", ErrDenied, err, c.cfg.Network)
	case is(rpctypes.ErrNoSpace):
		return fmt.Errorf("etcd is full (%w): free space on the members, then compact, defragment and disarm the alarm, "+
			"see the manual of etcd on space quotas", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, clientv3.ErrNoAvailableEndpoints),
		status.Code(err) == codes.Unavailable, status.Code(err) == codes.DeadlineExceeded:
		return c.unreachable(err)
	}
	return fmt.Errorf("etcd: %w", err)
}

// isEtcd compares the errors of etcd by what they say, as its server sends no more.
func isEtcd(err, target error) bool {
	var e, t rpctypes.EtcdError
	if errors.As(target, &t) {
		if errors.As(err, &e) {
			return e.Error() == t.Error()
		}
		return rpctypes.ErrorDesc(err) == t.Error()
	}
	return errors.Is(err, target)
}

// unreachable looks at each endpoint for what is wrong.
func (c *Client) unreachable(err error) error {
	var found []string
	anyAnswers := false
	for _, e := range c.etcd.Endpoints() {
		why := c.probe(e)
		if why == "" {
			anyAnswers = true
			continue
		}
		found = append(found, strings.TrimPrefix(strings.TrimPrefix(e, "https://"), "http://")+": "+why)
	}
	slices.Sort(found)
	if anyAnswers {
		text := "members answer, but cannot agree"
		if len(found) > 0 {
			text = "not enough members answer: " + strings.Join(found, ", ")
		}
		return fmt.Errorf("%w (%s): start those that are missing, `warren control members` shows them; traffic goes on "+
			"meanwhile, and changes wait", ErrNoQuorum, text)
	}
	return fmt.Errorf("%w: %s: is a member running there, and is the port open? Traffic goes on meanwhile", ErrUnreachable,
		cmp.Or(strings.Join(found, ", "), err.Error()))
}

// probeTimeout bounds a look at one endpoint.
const probeTimeout = 2 * time.Second

// probe says what keeps this host from talking to an endpoint; empty: nothing that can be seen.
func (c *Client) probe(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err.Error()
	}
	d := &net.Dialer{Timeout: probeTimeout}
	if u.Scheme == "unix" || u.Scheme == "unixs" {
		return ""
	}
	conn, err := d.Dial("tcp", u.Host)
	if err != nil {
		return cause(err)
	}
	defer conn.Close()
	if c.cfg.TLS == nil {
		return closed(conn)
	}
	cfg := c.cfg.TLS.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName = u.Hostname()
	}
	cfg.NextProtos = []string{"h2"}
	t := tls.Client(conn, cfg)
	_ = t.SetDeadline(time.Now().Add(probeTimeout)) // of a socket that is open
	var late net.Error
	if err := t.Handshake(); errors.As(err, &late) && late.Timeout() {
		// So does an etcd's member that has not found the majority since it started.
		return "it takes connections and says nothing"
	} else if err != nil {
		return cause(err)
	}
	// With TLS 1.3 the server says only after the handshake that it does not take the certificate.
	return closed(t)
}

// closed says why the other side ends a connection before anything was said; empty: it does not.
func closed(conn net.Conn) string {
	_ = conn.SetReadDeadline(time.Now().Add(probeTimeout / 4)) // of a socket that is open
	var b [1]byte
	_, err := conn.Read(b[:])
	var netErr net.Error
	switch {
	case err == nil, errors.As(err, &netErr) && netErr.Timeout():
		return ""
	case errors.Is(err, io.EOF):
		return "it closes the connection"
	}
	return cause(err)
}

// cause is an error without the ports of the connection: with them each try would have news to tell.
func cause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	text := err.Error()
	for _, call := range []string{"connect: ", "read: ", "write: "} {
		text = strings.TrimPrefix(text, call)
	}
	return text
}
