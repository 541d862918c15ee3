package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/install"
	"github.com/warren-net/warren/internal/nodefile"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
)

func newCNI() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cni", Short: "Put the CNI plugin in place for a container runtime, or take it away", Args: cobra.NoArgs,
		Long: "Put the CNI plugin in place for a container runtime, or take it away. The runtime runs the plugin, the\n" +
			"program warren-cni, to attach pods to the node, because a configuration list names it.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newInstall(), newRemove())
	return cmd
}

// dirFlags are the flags that both commands have.
func dirFlags(cmd *cobra.Command, dirs *install.Dirs) {
	cmd.Flags().StringVar(&dirs.Bin, "bin-dir", "/opt/cni/bin", "`DIR` where the runtime looks for plugins")
	cmd.Flags().StringVar(&dirs.Conf, "conf-dir", "/etc/cni/net.d", "`DIR` where the runtime looks for lists")
	for _, name := range []string{"bin-dir", "conf-dir"} {
		_ = cmd.MarkFlagDirname(name) // the flag exists, so this cannot fail
	}
}

func newInstall() *cobra.Command {
	var o install.Options
	var path string
	var early bool
	cmd := &cobra.Command{
		Use: "install", Short: "Put warren-cni and a configuration list in place", Args: cobra.NoArgs,
		Long: "Put the plugin warren-cni and the configuration list " + install.ListName + " where a container\n" +
			"runtime finds them. The node has to run, or to have run, unless --before-up says otherwise: the list says\n" +
			"where the plugin finds the node's pod CIDRs. A list that says something else is replaced with --force only,\n" +
			"and so is a program of that name that is not Warren's. Run it again after an upgrade; a second time changes\n" +
			"nothing. Whenever it is killed, and however many pods start meanwhile, a runtime sees each file whole, old\n" +
			"or new.",
		Example: "  warren cni install\n" +
			"  # For Debian's containerd, with host ports:\n" +
			"  warren cni install --bin-dir /usr/lib/cni --chain portmap,bandwidth",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if o.Binary == "" {
				var err error
				if o.Binary, err = ownPlugin(); err != nil {
					return err
				}
			}
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			node, err := readNode(cfg, early)
			if err != nil {
				return err
			}
			o.Network.RunDir, o.Network.StateDir = cfg.RunDir, cfg.StateDir
			if node != nil {
				o.Network.StateDir = node.StateDir
			}
			report, err := install.Install(o)
			switch {
			case err != nil:
			case node == nil:
				notYet(&report)
			default:
				describe(cmd.Context(), &report, cfg, *node)
			}
			return errors.Join(say(cmd, report), err)
		},
	}
	configFlag(cmd, &path)
	dirFlags(cmd, &o.Dirs)
	f := cmd.Flags()
	f.StringVar(&o.Binary, "binary", "",
		"`FILE` that is installed as warren-cni (default: the one that came with this program)")
	f.StringVar(&o.Network.Mode, "mode", cni.ModeRouted, "`MODE` of attachment: routed or bridge")
	f.StringVar(&o.Network.Name, "name", "warren", "`NAME` of the network")
	f.StringVar(&o.Network.CNIVersion, "cni-version", "1.0.0",
		"`VERSION` of the CNI specification: "+strings.Join(cni.Versions().SupportedVersions(), ", ")+
			"; from 1.1.0 on give each runtime a --name of its own, as it removes pods of the network that it does not know")
	f.StringSliceVar(&o.Network.Chain, "chain", nil,
		"`PLUGINS` behind Warren's, with commas between them: "+strings.Join(install.Chainable(), ", "))
	f.BoolVar(&early, "before-up", false,
		"also when the node has not run yet, as in an init container: pods wait for it")
	f.BoolVar(&o.Force, "force", false,
		"replace a list that says something else, and a program warren-cni that is not Warren's")
	_ = cmd.RegisterFlagCompletionFunc("mode",
		cobra.FixedCompletions([]string{cni.ModeRouted, cni.ModeBridge}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func newRemove() *cobra.Command {
	var o install.RemoveOptions
	var path string
	cmd := &cobra.Command{
		Use: "remove", Short: "Take the configuration list and warren-cni away", Args: cobra.NoArgs,
		Long: "Take away the configuration list and the plugin, as far as they are Warren's. While pods are attached, or\n" +
			"when the list was edited by hand, nothing is removed without --force. The plugin stays while another list\n" +
			"names it.",
		Example: "  warren cni remove --bin-dir /usr/lib/cni",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			// The list names the state directory. Without a list the configuration does, which may be gone by now.
			o.StateDir = cni.DefaultStateDir
			cfg, err := config.Load(path)
			switch {
			case err == nil:
				o.StateDir = cfg.StateDir
			case cmd.Flags().Changed("config"):
				return err
			}
			report, err := install.Remove(o)
			return errors.Join(say(cmd, report), err)
		},
	}
	configFlag(cmd, &path)
	dirFlags(cmd, &o.Dirs)
	cmd.Flags().BoolVar(&o.Force, "force", false, "also while pods are attached, and also a list that was edited by hand")
	return cmd
}

func needRoot() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("effective user is %d, and what a runtime executes as root has to belong to root: run it as root "+
			"or through sudo", uid)
	}
	return nil
}

// describe adds what the plugin will do with this node, and whether the node runs.
func describe(ctx context.Context, r *install.Report, cfg *config.Config, node nodefile.File) {
	r.Done = append(r.Done, fmt.Sprintf("node %s: pods get addresses of %s, MTU %d", node.Node, joined(node.PodCIDRs),
		node.MTU))
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	status, err := api.NewClient(cfg.SocketPath()).Status(ctx)
	if err != nil {
		r.Warnings = append(r.Warnings, "the node does not answer, so pods reach no other node until it does: "+err.Error())
		return
	}
	if status.Version != Version() {
		r.Warnings = append(r.Warnings, fmt.Sprintf("the running node is version %s and this program is %s: restart the node",
			status.Version, Version()))
	}
}

// say writes the report: what was done to standard output, warnings to standard error.
func say(cmd *cobra.Command, r install.Report) error {
	for _, warning := range r.Warnings {
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: warning: %s\n", warning)
	}
	for _, line := range r.Done {
		if _, err := io.WriteString(cmd.OutOrStdout(), line+"\n"); err != nil {
			return err
		}
	}
	return nil
}
