package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/join"
)

// The ports of a member, beside join.DefaultPort. They are not etcd's own: a host may run another etcd.
const (
	DefaultClientPort = "8789"
	DefaultPeerPort   = "8790"
)

// Options say what a member is.
type Options struct {
	Name     string // of the node
	Network  string
	StateDir string // of Warren, with the certificates

	Log *slog.Logger `json:"-"`

	// Where it listens, each IP:PORT, and is reached by others.
	Client, Peer, Join string

	// FirstPeers are all members by name, with their peer URLs, when this one has no data yet. Others is where their etcd
	// is reached, each HOST:PORT: the list as it is now is asked there.
	FirstPeers map[string]string
	Others     []string

	begins bool // an etcd of its own, where there is no data: only Bootstrap does
	alone  bool // without the other members that its data knows of: only MakeAlone does

	Timing Timing

	// Started is called once the etcd answers; nil: nobody.
	Started func() `json:"-"`
}

// Timing is what a test makes shorter.
type Timing struct {
	Heartbeat, Election time.Duration // 0: etcd's own, 100 ms and 1 s
	Retry               time.Duration // of what a new member does; 0: a second
}

// ErrRemoved says that this member was taken out of the etcd.
var ErrRemoved = errors.New("this host is no member of the etcd any more")

// dataDir is where a member's data is.
func dataDir(stateDir string) string { return filepath.Join(etcd.Dir(stateDir), "data") }

// HasData reports whether there is a member's data below the state directory.
func HasData(stateDir string) bool {
	// The directories are made by a try to start as well, also by one that failed.
	return wal.Exist(filepath.Join(dataDir(stateDir), "member", "wal"))
}

// RemoveData removes a member's data, for one that was taken out of the etcd.
func RemoveData(stateDir string) error { return os.RemoveAll(dataDir(stateDir)) }

// Run runs the member until ctx ends. It returns at once what keeps it from starting, and ErrRemoved when the others
// have taken it out. After ErrGaveUp the process has to end before the member can be started again.
func Run(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ca, err := join.LoadCA(o.StateDir)
	if err != nil {
		return fmt.Errorf("run a member of the etcd: %w", err)
	}
	if err := o.renewFirstPeers(ctx); err != nil {
		return err
	}
	broken, closing := make(fatalities, 1), &atomic.Bool{}
	cfg, err := o.config(zap.New(&zapCore{log: o.Log.With("part", "etcd"), closing: closing}, zap.WithFatalHook(broken),
		zap.WithPanicHook(broken)))
	if err != nil {
		return err
	}
	g := &guard{}
	cfg.GRPCAdditionalServerOptions = g.options()
	server, err := start(cfg, &o, broken)
	if err != nil {
		return fmt.Errorf("start the etcd: %w%s", err, hint(err, &o))
	}
	g.server.Store(server.Server)
	whole := true
	defer func() {
		if whole { // else it waits for goroutines that never go on
			closing.Store(true)
			end(server)
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	client, err := Client(&o)
	if err != nil {
		return err
	}
	defer client.Close()
	beside, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		beside <- o.serve(ctx, client, ca, server)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-beside:
		return err
	case err := <-broken:
		whole = false
		return fmt.Errorf("the etcd: %w%s", err, hint(err, &o))
	case err := <-server.Err():
		return fmt.Errorf("the etcd ended: %w", err)
	case <-server.Server.StopNotify():
		if ctx.Err() != nil {
			return nil
		}
		return ErrRemoved // else only Close stops it
	}
}

// end stops the server. Close by itself waits for the servers of clients, which begin when the etcd is ready: one that
// never was, as it found no majority of its members, would be waited for without end.
func end(server *embed.Etcd) {
	select {
	case <-server.Server.ReadyNotify():
	default:
		server.Server.Stop()
	}
	server.Close()
}

// hint says what to do about errors that etcd words for those who know it.
func hint(err error, o *Options) string {
	switch text := err.Error(); {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return fmt.Sprintf("; make room in %s, and it goes on from where it was", dataDir(o.StateDir))
	case strings.Contains(text, "address already in use"):
		return fmt.Sprintf("; another process listens at %s or %s: is another Warren running?", o.Client, o.Peer)
	case strings.Contains(text, "cannot assign requested address"):
		return fmt.Sprintf("; this host has no address %s: set `etcd.listenClients` and `etcd.listenPeers` to one that it "+
			"has", hostOf(o.Client))
	case strings.Contains(text, "member count is unequal"):
		return "; the members have changed since this one was admitted, and none of them says how: are they reached from " +
			"here?"
	case strings.Contains(text, "permanently removed"):
		return "; this member was removed: `warren control demote` here, then `warren control promote` makes it one again"
	}
	return ""
}

func hostOf(hostport string) string {
	h, _, _ := net.SplitHostPort(hostport)
	return h
}

// Client is a client with the rights of a member, for this host's own etcd.
func Client(o *Options) (*etcd.Client, error) {
	return clientAt(o, []string{o.Client})
}

// config is the configuration of the embedded server.
func (o *Options) config(log *zap.Logger) (*embed.Config, error) {
	if err := etcd.MakeDir(etcd.Dir(o.StateDir)); err != nil {
		return nil, err
	}
	if err := etcd.MakeDir(dataDir(o.StateDir)); err != nil {
		return nil, err
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = o.Name, dataDir(o.StateDir)
	for _, a := range []struct {
		hostport string
		to       []*[]url.URL
	}{
		{o.Client, []*[]url.URL{&cfg.ListenClientUrls, &cfg.AdvertiseClientUrls}},
		{o.Peer, []*[]url.URL{&cfg.ListenPeerUrls, &cfg.AdvertisePeerUrls}},
	} {
		if host, _, err := net.SplitHostPort(a.hostport); err != nil || net.ParseIP(host) == nil {
			return nil, fmt.Errorf("address %q of the member: write it as 192.0.2.1:%s", a.hostport, DefaultClientPort)
		}
		for _, to := range a.to {
			*to = []url.URL{{Scheme: "https", Host: a.hostport}}
		}
	}
	files := join.MemberFiles(o.StateDir)
	for _, t := range []*struct{ CertFile, KeyFile, TrustedCAFile *string }{
		{&cfg.ClientTLSInfo.CertFile, &cfg.ClientTLSInfo.KeyFile, &cfg.ClientTLSInfo.TrustedCAFile},
		{&cfg.PeerTLSInfo.CertFile, &cfg.PeerTLSInfo.KeyFile, &cfg.PeerTLSInfo.TrustedCAFile},
	} {
		*t.CertFile, *t.KeyFile, *t.TrustedCAFile = files.Cert, files.Key, files.CA
	}
	cfg.ClientTLSInfo.ClientCertAuth, cfg.PeerTLSInfo.ClientCertAuth = true, true
	// Certificates are for a name of their own, not for addresses, which etcd would compare.
	cfg.ClientTLSInfo.SkipClientSANVerify, cfg.PeerTLSInfo.SkipClientSANVerify = true, true
	cfg.ClientTLSInfo.ServerName, cfg.PeerTLSInfo.ServerName = etcd.ServerName, etcd.ServerName
	// A node's certificate is no member's: it must not speak as a peer.
	cfg.PeerTLSInfo.AllowedHostnames = []string{etcd.ServerName}
	cfg.TlsMinVersion = "TLS1.3"

	cfg.ClusterState = embed.ClusterStateFlagExisting
	if o.begins {
		cfg.ClusterState = embed.ClusterStateFlagNew
	}
	cfg.ForceNewCluster = o.alone
	peers := []string{o.Name + "=https://" + o.Peer}
	if len(o.FirstPeers) > 1 {
		peers = nil
		for name, u := range o.FirstPeers {
			peers = append(peers, name+"="+u)
		}
		slices.Sort(peers)
	}
	cfg.InitialCluster = strings.Join(peers, ",")
	cfg.InitialClusterToken = "warren-" + o.Network
	cfg.StrictReconfigCheck = true
	cfg.EnableGRPCGateway = false
	// What is older than an hour nobody waits for: who was away for longer reads everything again.
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "1h"
	cfg.MaxLearners = 2
	if o.Timing.Heartbeat > 0 {
		cfg.TickMs, cfg.ElectionMs = uint(o.Timing.Heartbeat/time.Millisecond), uint(o.Timing.Election/time.Millisecond)
	}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log)
	return cfg, nil
}

// serve does what a member does beside being one: it becomes a voting one, says where it is, and lets hosts in.
func (o *Options) serve(ctx context.Context, client *etcd.Client, ca *join.CA, server *embed.Etcd) error {
	select {
	case <-ctx.Done():
		return nil
	case <-server.Server.ReadyNotify():
	}
	retry := o.Timing.Retry
	if retry == 0 {
		retry = time.Second
	}
	for said := ""; ; {
		err := o.arrive(ctx, client, server)
		if err == nil {
			break
		}
		if (o.begins || o.alone) && errors.Is(err, etcd.ErrDenied) { // it is the only one: nobody else changes that
			return fmt.Errorf("the data in %s knows nothing of this host's certificate as a member: is it older, or was the "+
				"host demoted? Put the data and the certificates, in %s, back as they were at one time: %w", dataDir(o.StateDir),
				join.Dir(o.StateDir), err)
		}
		if text := err.Error(); text != said && ctx.Err() == nil {
			said = text
			level := slog.LevelWarn
			if errors.Is(err, errInTime) {
				level = slog.LevelInfo
			}
			o.Log.Log(ctx, level, "this member is not in service yet", "reason", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
	if o.Started != nil {
		o.Started()
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.Join)
	if err != nil {
		return fmt.Errorf("let hosts in at %s: %w", o.Join, err)
	}
	s := join.NewServer(join.ServerOptions{CA: ca, Client: client, StateDir: o.StateDir, Log: o.Log})
	return s.Serve(ctx, l)
}

// errInTime says that nothing is wrong.
var errInTime = errors.New("it takes its time")

// arrive is one try to be a voting member that everybody knows.
func (o *Options) arrive(ctx context.Context, client *etcd.Client, server *embed.Etcd) error {
	if server.Server.IsLearner() {
		return o.promote(ctx, server)
	}
	if err := client.PutMember(ctx, etcd.Member{Name: o.Name, Client: o.Client, Join: o.Join}); err != nil {
		return err
	}
	return nil
}

// promote asks the voting members for a vote. They refuse until this one has all data.
func (o *Options) promote(ctx context.Context, server *embed.Etcd) error {
	var voters []string
	for _, m := range server.Server.Cluster().Members() {
		if !m.IsLearner {
			for _, u := range m.ClientURLs {
				voters = append(voters, strings.TrimPrefix(u, "https://"))
			}
		}
	}
	if len(voters) == 0 {
		return fmt.Errorf("%w: it waits for the list of members", errInTime)
	}
	c, err := clientAt(o, voters)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = c.Etcd().MemberPromote(ctx, uint64(server.Server.MemberID()))
	if err != nil && rpctypes.ErrorDesc(err) != rpctypes.ErrorDesc(rpctypes.ErrGRPCMemberNotLearner) {
		if rpctypes.ErrorDesc(err) == rpctypes.ErrorDesc(rpctypes.ErrGRPCLearnerNotReady) {
			return fmt.Errorf("%w: it fetches the data of the others", errInTime)
		}
		return c.Explain(err)
	}
	return fmt.Errorf("%w: it was made a voting member, and waits to hear of it", errInTime)
}

func clientAt(o *Options, endpoints []string) (*etcd.Client, error) {
	tlsConfig, err := join.MemberFiles(o.StateDir).Config()
	if err != nil {
		return nil, err
	}
	return etcd.NewClient(etcd.Config{Endpoints: endpoints, TLS: tlsConfig, Network: o.Network, Node: o.Name,
		StateDir: o.StateDir, Log: o.Log})
}
