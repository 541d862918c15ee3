package cli

import (
	"fmt"
	"os/exec"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/control/etcd/member"
)

// memberCommand is what the process of this host's member of the etcd is called by.
const memberCommand = "etcd-member"

// memberProgram is this program, as that process. The file may be another version's meanwhile, which /proc/self/exe is
// not.
func memberProgram() *exec.Cmd {
	return &exec.Cmd{Path: "/proc/self/exe", Args: []string{"warren", memberCommand}}
}

func newMember() *cobra.Command {
	return &cobra.Command{
		Use: memberCommand, Short: "Run this host's member of the etcd, for `warren up`", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The network's keys are in its memory.
			if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
				return fmt.Errorf("keep the memory to itself: %w", err)
			}
			return member.Serve(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}
