package member

import (
	"context"
	"errors"
	"fmt"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/join"
)

// Bootstrap makes a network with this host as its first member: its authority, its certificates, its etcd with the
// authentication on, and its settings. Then do is called, with a client of a member, and the etcd is stopped. It can be
// repeated where it failed or was killed half way, for the same node.
func Bootstrap(ctx context.Context, o Options, s etcd.Settings, do func(context.Context, *etcd.Client) error) error {
	ca, err := join.LoadCA(o.StateDir)
	if err != nil {
		if HasData(o.StateDir) {
			return fmt.Errorf("an etcd's data is in %s, and its authority cannot be read: %w", dataDir(o.StateDir), err)
		}
		if ca, err = join.NewCA(o.Network); err != nil {
			return err
		}
		if err := ca.Save(o.StateDir); err != nil {
			return err
		}
	}
	if name := ca.IssuedTo(o.StateDir); name != "" && name != o.Name && HasData(o.StateDir) {
		return fmt.Errorf("a network was made on this host already, with node %q as its first, and is in %s: --node %s goes "+
			"on with it; to begin anew, without it and its hosts, stop Warren and move that directory away", name,
			etcd.Dir(o.StateDir), name)
	}
	if err := ca.Issue(o.StateDir, o.Name); err != nil {
		return err
	}
	o.begins = true
	return With(ctx, o, func(ctx context.Context, client *etcd.Client) error {
		if err := client.WriteSettings(ctx, s); err != nil {
			return err
		}
		if err := join.Secure(ctx, client, o.Name, o.StateDir); err != nil {
			return err
		}
		return do(ctx, client)
	})
}

// With runs the member for as long as do takes.
func With(outer context.Context, o Options, do func(context.Context, *etcd.Client) error) error {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	started, ended := make(chan struct{}), make(chan error, 1)
	o.Started = func() { close(started) }
	go func() {
		ended <- Run(ctx, o)
		cancel() // whoever asks it waits in vain
	}()
	select {
	case err := <-ended:
		return errors.Join(err, outer.Err())
	case <-started:
	}
	client, err := Client(&o)
	if err == nil {
		err = do(ctx, client)
		err = errors.Join(err, client.Close())
	}
	cancel()
	if ended := <-ended; ended != nil {
		err = ended // also where do failed: it had nobody to ask then
	}
	return err
}
