package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/join"
	"github.com/warren-net/warren/internal/atomicfile"
)

// A Service is all that a node with the control plane etcd runs: the source, the member if this host is one, and what
// renews its certificates.
type Service struct {
	Source *etcd.Source

	spec    etcd.Spec
	config  etcd.Config
	program func() *exec.Cmd

	mu      sync.Mutex
	problem string // of the member; empty: it runs, or there is none
}

// A Setup says what a Service is of.
type Setup struct {
	Spec     etcd.Spec
	Node     string
	StateDir string
	Log      *slog.Logger

	// Program is a new process that calls Serve with its standard input and output, in which the member runs.
	Program func() *exec.Cmd
}

// NewService reads the certificates; nothing else happens before Run.
func NewService(s Setup) (*Service, error) {
	cfg, err := s.Spec.Config(join.Files(s.StateDir))
	if errors.Is(err, os.ErrNotExist) && s.Spec.Own() {
		return nil, fmt.Errorf("this host has no certificate for the network: `warren join` gets one: %w", err)
	}
	if err != nil {
		return nil, err
	}
	cfg.Node, cfg.StateDir, cfg.Log = s.Node, s.StateDir, s.Log
	source, err := etcd.New(cfg)
	if err != nil {
		return nil, err
	}
	return &Service{Source: source, spec: s.Spec, config: cfg, program: s.Program}, nil
}

// Problems is what people should know of the member.
func (s *Service) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.problem == "" {
		return nil
	}
	return []string{s.problem}
}

// trouble sets what is wrong with the member, nothing when it runs, and reports whether that is news.
func (s *Service) trouble(text string) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news = s.problem != text
	s.problem = text
	return news
}

// Run runs what there is beside the source until ctx ends. A member that fails is started again and never the node's
// end: traffic does not need it.
func (s *Service) Run(ctx context.Context) {
	if !s.spec.Own() {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	renewer := &join.Renewer{StateDir: s.config.StateDir, Joins: join.JoinsOf(s.config), Log: s.config.Log}
	if s.spec.Embedded {
		ca, err := join.LoadCA(s.config.StateDir)
		if err != nil {
			s.config.Log.Error("this host cannot be a member of the etcd", "error", err)
			s.trouble(fmt.Sprintf("this host cannot be a member of the etcd: %v", err))
		} else {
			renewer.CA = ca
			wg.Go(func() { s.member(ctx) })
		}
	}
	renewer.Run(ctx)
}

// member keeps the member running.
func (s *Service) member(ctx context.Context) {
	const first, most = time.Second, time.Minute
	for pause := first; ; pause = min(2*pause, most) {
		began := time.Now()
		err := s.runMember(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrRemoved):
			const text = "the other members took this host's one out of the etcd; the node goes on without: `warren control " +
				"demote` here tells its configuration so"
			s.config.Log.Warn(text)
			s.trouble(text)
			return
		}
		if time.Since(began) > most {
			pause = first
		}
		level := slog.LevelDebug
		if s.trouble(fmt.Sprintf("this host's member of the etcd does not run, and is tried again every minute; traffic "+
			"goes on: %v", err)) {
			level = slog.LevelError
		}
		s.config.Log.Log(ctx, level, "this host's member of the etcd does not run; it is started again", "in", pause,
			"error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (s *Service) runMember(ctx context.Context) error {
	o := Options{Name: s.config.Node, Network: s.config.Network, StateDir: s.config.StateDir, Log: s.config.Log,
		Client: s.spec.ListenClients, Peer: s.spec.ListenPeers, Join: s.spec.ListenJoin}
	if o.Network == "" {
		o.Network = etcd.DefaultNetwork
	}
	if !HasData(o.StateDir) {
		// Without a list of members this would begin an etcd that is empty, and the network would be gone.
		peers, err := readPeers(o.StateDir)
		if err != nil {
			return fmt.Errorf("this member's data is not in %s, and it is not known which members there are (%w): put a "+
				"backup there; or, with other members, `warren control demote %s` there, then here `warren control demote` and "+
				"`warren control promote`",
				dataDir(o.StateDir), err, o.Name)
		}
		o.FirstPeers = peers
		o.Others = slices.DeleteFunc(slices.Clone(s.spec.Endpoints), func(e string) bool { return e == o.Client })
	}
	o.Started = func() {
		s.trouble("")
		// Once it has data, the list must not make it begin again without.
		if err := atomicfile.Remove(peersFile(o.StateDir)); err != nil {
			s.config.Log.Warn("the list of the first members stays", "error", err)
		}
		s.config.Log.Info("this host's member of the etcd runs", "clients", o.Client, "peers", o.Peer, "join", o.Join)
	}
	return runApart(ctx, s.program, o)
}

func peersFile(stateDir string) string { return filepath.Join(etcd.Dir(stateDir), "peers.json") }

// WritePeers keeps the members that a new one begins with.
func WritePeers(stateDir string, peers map[string]string) error {
	data, err := json.Marshal(peers)
	if err != nil {
		return err
	}
	return atomicfile.Replace(peersFile(stateDir), append(data, '\n'), 0o600)
}

func readPeers(stateDir string) (map[string]string, error) {
	data, err := os.ReadFile(peersFile(stateDir))
	if err != nil {
		return nil, err
	}
	var peers map[string]string
	if err := json.Unmarshal(data, &peers); err != nil {
		return nil, fmt.Errorf("%s: %w", peersFile(stateDir), err)
	}
	if len(peers) < 2 {
		return nil, fmt.Errorf("%s names %d members", peersFile(stateDir), len(peers))
	}
	return peers, nil
}
