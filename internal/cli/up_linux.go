package cli

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/ratelog"
	"github.com/warren-net/warren/node"
	"github.com/warren-net/warren/node/config"
)

// Of records with the same message, so many pass in so much time.
const (
	logBurst    = 10
	logInterval = 10 * time.Second
)

func newUp() *cobra.Command {
	var src config.Source
	var level, control string
	cmd := &cobra.Command{
		Use: "up", Short: "Run a node in the foreground", Args: cobra.NoArgs,
		Long: "Run a node in the foreground, until SIGTERM or SIGINT. SIGHUP reads the configuration again;\n" +
			"so does a change of the file. A second SIGTERM ends the node at once and leaves everything as it is.\n\n" +
			"A node that is killed leaves its device, routes and rules, and so does one with `onExit: leave` that is\n" +
			"stopped: the next start takes them over, and connections between pods go on. Under systemd it says when it\n" +
			"is ready (Type=notify).",
		Example: "  warren up\n" +
			"  warren up --config /etc/warren/other.yaml --log-level debug",
		RunE: func(cmd *cobra.Command, _ []string) error {
			src.Control = config.Control(control)
			cfg, err := config.LoadSource(src)
			if err != nil {
				return err
			}
			if level != "" {
				if cfg.LogLevel, err = config.ParseLevel(level); err != nil {
					return err
				}
			}
			return up(cmd.Context(), cfg, src, cmd.ErrOrStderr(), level != "")
		},
	}
	configFlag(cmd, &src.File)
	cmd.Flags().StringVar(&control, "control", "",
		"`CONTROL` plane instead of the configuration's: static, etcd or kubernetes")
	_ = cmd.RegisterFlagCompletionFunc("control",
		cobra.FixedCompletions([]string{"static", "etcd", "kubernetes"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().StringVar(&src.Node, "node", "", "`NAME` of this node instead of the configuration's")
	cmd.Flags().StringVar(&level, "log-level", "",
		"`LEVEL` of the log instead of the configuration's: debug, info, warn or error")
	_ = cmd.RegisterFlagCompletionFunc("log-level",
		cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// up runs a node; said is what the command line says instead of the file, and keepLevel that the log level does not
// follow the configuration.
func up(ctx context.Context, cfg *config.Config, said config.Source, stderr io.Writer, keepLevel bool) error {
	level := new(slog.LevelVar)
	level.Set(cfg.LogLevel)
	opt := node.Options{Version: Version(), Log: newLog(stderr, cfg.LogFormat, level), OwnProcess: true, Said: said}
	if !keepLevel {
		opt.Level = level
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal ends the process as signals do by default
	c, err := openControl(cfg, opt.Log)
	if err != nil {
		return err
	}
	opt.Source, opt.Problems = c.source, c.problems
	opt.Ready = func() {
		notify(opt.Log, daemon.SdNotifyReady)
		c.ready()
	}
	told := make(chan struct{})
	untold := context.AfterFunc(ctx, func() {
		defer close(told)
		notify(opt.Log, daemon.SdNotifyStopping)
	})
	defer func() { // before stop: a start that fails ends no service
		if !untold() {
			<-told
		}
	}()

	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	defer signal.Stop(hangUp)
	reload := make(chan struct{}, 1)
	opt.Reload = reload
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangUp:
				select {
				case reload <- struct{}{}:
				default:
				}
			}
		}
	}()
	// No core file, and no look into the memory by others than root: the node's private key is in it.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		opt.Log.Warn("a crash may leave a core file with this node's private key", "error", err)
	}
	beside, end := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.run(beside)
	}()
	err = node.Run(ctx, cfg, opt)
	end()
	<-ended
	if err != nil {
		return err
	}
	if cfg.OnExit == config.Remove {
		c.ended()
	}
	return nil
}

func newLog(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	opt := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, opt)
	if format == "json" {
		h = slog.NewJSONHandler(w, opt)
	}
	return slog.New(ratelog.New(h, ratelog.Options{Burst: logBurst, Interval: logInterval}))
}

func newDown() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "down", Short: "Remove what a killed node left", Args: cobra.NoArgs,
		Long: "Remove the device, addresses, routes, rules and nftables tables that a killed node, or one with\n" +
			"`onExit: leave`, left behind. While pods are attached, the routes that keep their traffic from leaving\n" +
			"in the clear stay. Without a configuration it is the node with the default names that is taken down.",
		Example: "  systemctl stop warren && warren down",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := configLeft(path, cmd.Flags().Changed("config"), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return down(cfg, cmd.ErrOrStderr())
		},
	}
	configFlag(cmd, &path)
	return cmd
}
