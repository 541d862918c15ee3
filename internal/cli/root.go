package cli

import "github.com/spf13/cobra"

// Root is the tree of commands, with what cobra adds by itself, for what is made from the definitions: the man pages.
func Root() *cobra.Command {
	root := newRoot(Invocation{})
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return root
}
