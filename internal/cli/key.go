package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/node/config"
)

func newKey() *cobra.Command {
	cmd := &cobra.Command{
		Use: "key", Short: "Make, show and rotate this node's key", Args: cobra.NoArgs,
		Long: "Make, show and rotate this node's key. The private half stays in the state directory, in a file that only\n" +
			"its owner can read; what is printed is the public half, for `publicKey` of this node's entry.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeyNew(), newKeyPublic(), newKeyRotate())
	return cmd
}

// A keyDir holds the flags that say where the keys are.
type keyDir struct{ config, dir string }

func (k *keyDir) flags(cmd *cobra.Command) {
	configFlag(cmd, &k.config)
	cmd.Flags().StringVar(&k.dir, "state-dir", "", "state `DIR` that holds the key (default: the configuration's)")
	_ = cmd.MarkFlagDirname("state-dir") // the flag exists, so this cannot fail
}

// find is the state directory. The file may be wrong otherwise, as it cannot list this node's key before there is one;
// the default one may also be missing.
func (k *keyDir) find(cmd *cobra.Command) (string, error) {
	if k.dir != "" {
		return k.dir, nil
	}
	if _, err := os.Stat(k.config); errors.Is(err, os.ErrNotExist) && !cmd.Flags().Changed("config") {
		return config.DefaultStateDir, nil
	}
	return config.StateDirIn(k.config)
}

// named refuses to end a rotation while the configuration, as far as there is one that can be read, has another key for
// this node than its newest: nobody would know the node by the key that is left, and it would not start again.
func (k *keyDir) named(dir string) error {
	cfg, err := config.Load(k.config)
	if err != nil || cfg.StateDir != dir || cfg.Self.PublicKey.IsZero() {
		return nil //nolint:nilerr // not this node's, or not to be read: then it says nothing of its key
	}
	ring, err := key.Load(dir)
	if err != nil {
		return withHint(err)
	}
	if newest := ring.Newest().Public(); cfg.Self.PublicKey != newest {
		return fmt.Errorf("%s still has publicKey %s for node %s: put %s there, on all nodes, before the rotation ends",
			k.config, cfg.Self.PublicKey, cfg.Node, newest)
	}
	return nil
}

// withHint says how to make a key where there is none.
func withHint(err error) error {
	if errors.Is(err, key.ErrNone) {
		return fmt.Errorf("%w: `warren key new` makes one, and so does the first `warren up`", err)
	}
	return err
}

func printKey(cmd *cobra.Command, k key.Public) error {
	_, err := fmt.Fprintln(cmd.OutOrStdout(), k)
	return err
}

func newKeyNew() *cobra.Command {
	var where keyDir
	cmd := &cobra.Command{
		Use: "new", Short: "Make this node's key, and print the public half", Args: cobra.NoArgs,
		Long: "Make this node's key and print the public half, for `publicKey` of this node's entry in the configuration\n" +
			"of every node. It is an error when there is a key already: nothing is replaced.",
		Example: "  warren key new",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := where.find(cmd)
			if err != nil {
				return err
			}
			ring, made, err := key.LoadOrCreate(dir)
			if err != nil {
				return err
			}
			if !made {
				return fmt.Errorf("%s: this node has a key already: `warren key public` prints the public half, and "+
					"`warren key rotate` makes the next one", filepath.Join(dir, key.File))
			}
			return printKey(cmd, ring.Newest().Public())
		},
	}
	where.flags(cmd)
	return cmd
}

func newKeyPublic() *cobra.Command {
	var where keyDir
	cmd := &cobra.Command{
		Use: "public", Short: "Print the public half of this node's key", Args: cobra.NoArgs,
		Long: "Print the public half of this node's key. While a rotation is under way that is the newer one's, and\n" +
			"standard error says so.",
		Example: "  warren key public",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := where.find(cmd)
			if err != nil {
				return err
			}
			ring, err := key.Load(dir)
			if err != nil {
				return withHint(err)
			}
			if ring.Rotating() {
				fmt.Fprintf(cmd.ErrOrStderr(), "warren: a rotation is under way: the new key is %s, and the node answers to the "+
					"previous one, %s, until `warren key rotate --finish`\n", ring.Keys[0].Public(), ring.Keys[1].Public())
			}
			return printKey(cmd, ring.Newest().Public())
		},
	}
	where.flags(cmd)
	return cmd
}

func newKeyRotate() *cobra.Command {
	var where keyDir
	var finish bool
	cmd := &cobra.Command{
		Use: "rotate", Short: "Give this node a new key without losing a connection", Args: cobra.NoArgs,
		Long: "Make this node's next key and print the public half. The node answers to both keys until all nodes have\n" +
			"the new one and `warren key rotate --finish` takes the old one away.",
		Example: "  warren key rotate             # then give the key to all nodes\n" +
			"  warren key rotate --finish    # when all have it",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := where.find(cmd)
			if err != nil {
				return err
			}
			if finish {
				if err := where.named(dir); err != nil {
					return err
				}
				ring, err := key.Finish(dir)
				if err != nil {
					return withHint(err)
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "warren: the previous key is gone; a running node forgets it within ten "+
					"seconds\n")
				return printKey(cmd, ring.Newest().Public())
			}
			ring, err := key.Rotate(dir)
			if err != nil {
				return withHint(err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "warren: a running node takes the new key up within ten seconds. Put it into "+
				"`publicKey` of this node's entry on all nodes, and into the configurations of `peers`; when they have "+
				"reloaded it, run `warren key rotate --finish`\n")
			return printKey(cmd, ring.Newest().Public())
		},
	}
	where.flags(cmd)
	cmd.Flags().BoolVar(&finish, "finish", false, "all nodes have the new key: take the old one away")
	return cmd
}
