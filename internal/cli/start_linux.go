package cli

import (
	"context"
	"fmt"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/util"
	"github.com/spf13/cobra"

	"github.com/warren-net/warren/node/config"
)

// unit is the service of deploy/systemd and of the packages.
const unit = "warren.service"

// A systemd is the service manager, where it runs and knows Warren's unit.
type systemd struct{ conn *dbus.Conn }

// openSystemd finds it; nil: there is none.
func openSystemd(ctx context.Context) *systemd {
	if !util.IsRunningSystemd() {
		return nil
	}
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return nil
	}
	files, err := conn.ListUnitFilesByPatternsContext(ctx, nil, []string{unit})
	if err != nil || len(files) == 0 {
		conn.Close()
		return nil
	}
	return &systemd{conn: conn}
}

func (s *systemd) close() { s.conn.Close() }

// active reports whether the service runs.
func (s *systemd) active(ctx context.Context) bool {
	p, err := s.conn.GetUnitPropertyContext(ctx, unit, "ActiveState")
	if err != nil {
		return false
	}
	state, _ := p.Value.Value().(string)
	return state == "active" || state == "activating" || state == "reloading"
}

// do runs one job and waits for its end.
func (s *systemd) do(ctx context.Context, what string,
	job func(context.Context, string, string, chan<- string) (int, error)) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	done := make(chan string, 1)
	if _, err := job(ctx, unit, "replace", done); err != nil {
		return fmt.Errorf("%s %s: %w", what, unit, err)
	}
	select {
	case result := <-done:
		if result == "done" {
			return nil
		}
		return fmt.Errorf("%s %s: %s; `journalctl -u warren` says why", what, unit, result)
	case <-ctx.Done():
		return fmt.Errorf("%s %s takes longer than %s; `journalctl -u warren` says why", what, unit, settle)
	}
}

// start starts the node: as a service that also starts with the host, where there is systemd, else here.
func (h *hostFlags) start(cmd *cobra.Command) error {
	ctx := cmd.Context()
	if h.noStart {
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: nothing was started: `warren up --config %s` runs the node\n", h.config)
		return nil
	}
	// The unit knows the default file only.
	if sd := openSystemd(ctx); sd != nil && h.config == config.DefaultPath {
		defer sd.close()
		if _, _, err := sd.conn.EnableUnitFilesContext(ctx, []string{unit}, false, true); err != nil {
			return fmt.Errorf("enable %s: %w", unit, err)
		}
		if err := sd.do(ctx, "start", sd.conn.RestartUnitContext); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: the node runs as %s, and starts with the host\n", unit)
		return nil
	}
	src := config.Source{File: h.config}
	cfg, err := config.LoadSource(src)
	if err != nil {
		return err
	}
	if pid, err := listener(cfg.SocketPath()); err != nil || pid > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: the node's daemon runs already, as %s\n", processText(pid))
		return nil //nolint:nilerr // an error is that the process cannot be seen
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "warren: the node runs until this command ends; the next time `warren up` starts it\n")
	return up(ctx, cfg, src, cmd.ErrOrStderr(), false)
}

// restartService has a daemon take a new configuration up. Where no service runs, why says what waits for it.
func restartService(cmd *cobra.Command, why string) error {
	if sd := openSystemd(cmd.Context()); sd != nil {
		defer sd.close()
		if sd.active(cmd.Context()) {
			return sd.do(cmd.Context(), "restart", sd.conn.RestartUnitContext)
		}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "warren: start the node's daemon again (`warren up`): %s\n", why)
	return nil
}

// stopService stops the service, if it runs, and does not start it with the host any more. One that does not run is
// another node's where the configuration is not the unit's.
func stopService(ctx context.Context, path string) error {
	sd := openSystemd(ctx)
	if sd == nil {
		return nil
	}
	defer sd.close()
	switch {
	case sd.active(ctx):
		if err := sd.do(ctx, "stop", sd.conn.StopUnitContext); err != nil {
			return err
		}
	case path != config.DefaultPath:
		return nil
	}
	if _, err := sd.conn.DisableUnitFilesContext(ctx, []string{unit}, false); err != nil {
		return fmt.Errorf("disable %s: %w", unit, err)
	}
	return nil
}
