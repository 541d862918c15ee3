// Package cli is the command line of warren: flags, wiring, and tables for people. What it shows comes from node/api,
// what it runs is package node.
//
// Answers go to standard output, everything else to standard error; an error is one line that begins with "warren: ".
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/internal/apisocket"
	"github.com/warren-net/warren/node"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
)

// An Invocation is one call of the program.
type Invocation struct {
	Args           []string // without the program's name
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Exit statuses.
const (
	exitOK    = 0
	exitError = 1
)

// errSilent ends the program with status 1 when everything has been said already.
var errSilent = errors.New("said already")

// Run carries the call out and returns the exit status.
func Run(ctx context.Context, inv Invocation) int {
	root := newRoot(inv)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case !errors.Is(err, errSilent):
		fmt.Fprintf(inv.Stderr, "warren: %s\n", oneLine(err))
	}
	return exitError
}

// oneLine joins the lines of an error, so that a log or a script sees one record.
func oneLine(err error) string {
	var parts []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.ReplaceAll(strings.Join(parts, "; "), "?; ", "? ")
}

// Version is the version that the program was built from: the module's, which since Go 1.24 comes from the tag or the
// commit of the checkout.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

func newRoot(inv Invocation) *cobra.Command {
	root := &cobra.Command{
		Use:   "warren",
		Short: "A pod network in one program",
		Long: "Warren connects the pods of several nodes through a TUN device and a userspace forwarder.\n" +
			"`warren up` runs a node; the other commands ask the running one or look at the host.",
		Example: "  # A network of plain hosts: on the first one, then on each other one.\n" +
			"  warren init\n" +
			"  warren join 192.0.2.10 --token TOKEN\n" +
			"  # Or a node as /etc/warren/warren.yaml has it.\n" +
			"  warren check && warren up\n" +
			"  # Either way, once: the plugin for the container runtime.\n" +
			"  warren cni install",
		Version:           versions(), // for --version, which many try first
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
	}
	root.SetArgs(inv.Args)
	root.SetIn(inv.Stdin)
	root.SetOut(inv.Stdout)
	root.SetErr(inv.Stderr)
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
	})
	root.AddCommand(newUp(), newDown(), newCheck(), newCNI(), newVersion(), newKey(), newPeer(),
		newInit(), newJoin(), newToken(), newControl(), newNodes(), newLeave(), newMember(),
		newStatus(), newPeers(), newRoutes(), newPods(), newDrops())
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Long: "Print the version of this program and of the Go that built it. The running node may be of another one:\n" +
			"`warren status` says which.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "warren %s\n", versions())
			return err
		},
	}
}

// versions are the program's and Go's.
func versions() string { return Version() + " " + runtime.Version() }

// loadKnown reads the configuration, with what is known of the cluster where a control plane has the nodes.
func loadKnown(path string) (*config.Config, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	return node.Known(cfg)
}

// configFlag adds --config.
func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "config", config.DefaultPath, "configuration `FILE`")
	// The flag exists, so this cannot fail.
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
}

// An ask holds the flags of the commands that ask the running node.
type ask struct {
	config, socket, output string
}

func (a *ask) flags(cmd *cobra.Command) {
	configFlag(cmd, &a.config)
	cmd.Flags().StringVar(&a.socket, "socket", "", "API socket `PATH` of the node daemon (default: the configuration's)")
	outputFlag(cmd, &a.output)
}

// outputFlag adds -o.
func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "`FORMAT` of the answer: table or json")
	// The flag exists, so this cannot fail.
	_ = cmd.RegisterFlagCompletionFunc("output",
		cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func checkOutput(output string) error {
	if output != "table" && output != "json" {
		return fmt.Errorf("output format %q: use table or json", output)
	}
	return nil
}

// client checks the flags and finds the socket.
func (a *ask) client(cmd *cobra.Command) (*api.Client, error) {
	if err := checkOutput(a.output); err != nil {
		return nil, err
	}
	if a.socket != "" {
		return api.NewClient(a.socket), nil
	}
	socket, err := config.SocketIn(a.config)
	if err == nil {
		return api.NewClient(socket), nil
	}
	if cmd.Flags().Changed("config") {
		return nil, err
	}
	// The default file may be gone while a node runs.
	return api.NewClient(defaultSocket), nil
}

// The run directory, and the socket in it, unless the configuration says otherwise.
const (
	defaultRunDir = "/run/warren"
	defaultSocket = defaultRunDir + "/" + apisocket.Name
)

// Main is the program: it runs the command line of this process.
func Main() int {
	return Run(context.Background(), Invocation{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout,
		Stderr: os.Stderr})
}
