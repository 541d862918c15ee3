package cli

import (
	"context"
	"log/slog"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/kubernetes"
	"github.com/warren-net/warren/node/config"
)

// A controlPlane is what a node's nodes come from, unless its file lists them.
type controlPlane struct {
	source control.Source // nil: the file
	ready  func()         // called when pods of this node can talk
	ended  func()         // called when the node has taken its network away

	run      func(context.Context) // runs beside the node until the context ends
	problems func() []string       // of what runs beside it; nil: nothing does
}

// goodbye is how long the end of a node waits for its control plane to hear of it.
const goodbye = 3 * time.Second

// openControl makes the control plane that the configuration names. Nothing is asked before the node runs.
func openControl(cfg *config.Config, log *slog.Logger) (controlPlane, error) {
	switch cfg.Control {
	case config.Kubernetes:
		s, err := kubernetes.New(kubernetes.Options{
			NodeName: cfg.Node, Kubeconfig: cfg.Kubernetes.Kubeconfig, Server: cfg.Kubernetes.Server,
			Version: Version(), Log: log,
		})
		if err != nil {
			return controlPlane{}, err
		}
		return controlPlane{source: s, ready: func() { s.Ready(true) }, ended: func() {
			ctx, cancel := context.WithTimeout(context.Background(), goodbye)
			defer cancel()
			if err := s.Leave(ctx); err != nil {
				log.Warn("the cluster was not told that this node has no network now", "error", err)
			}
		}, run: func(context.Context) {}}, nil
	case config.Etcd:
		s, err := member.NewService(member.Setup{Spec: cfg.Etcd, Node: cfg.Node, StateDir: cfg.StateDir, Log: log,
			Program: memberProgram})
		if err != nil {
			return controlPlane{}, err
		}
		return controlPlane{source: s.Source, ready: func() {}, ended: func() {}, run: s.Run, problems: s.Problems}, nil
	}
	return controlPlane{ready: func() {}, ended: func() {}, run: func(context.Context) {}}, nil
}
