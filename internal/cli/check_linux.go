package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node"
)

func newCheck() *cobra.Command {
	var path, output string
	cmd := &cobra.Command{
		Use: "check", Short: "Look at this host: what would not work, and how to mend it", Args: cobra.NoArgs,
		Long: "Look at the configuration and at this host for what would keep a node from working, and say how to\n" +
			"mend it. Nothing is changed. The exit status is 1 when there is an error, 0 when there are warnings only.",
		Example: "  warren check\n" +
			"  warren check --config new.yaml    # before it replaces the one in use",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			cfg, err := loadKnown(path)
			if err != nil {
				return err
			}
			return report(cmd.OutOrStdout(), node.Check(cfg), output)
		},
	}
	configFlag(cmd, &path)
	outputFlag(cmd, &output)
	return cmd
}

// report writes the findings; the error is errSilent when one of them is an error.
func report(w io.Writer, findings []hostnet.Finding, output string) error {
	counts := map[hostnet.Level]int{}
	for _, f := range findings {
		counts[f.Level]++
	}
	if output == "json" {
		if err := writeJSON(w, findings); err != nil {
			return err
		}
	} else {
		// Not a table: the sentences are longer than a terminal is wide.
		for _, f := range findings {
			text := fmt.Sprintf("%-8s %s: %s\n", f.Level, f.What, f.Why)
			if f.Mend != "" {
				text += fmt.Sprintf("%-8s mend: %s\n", "", f.Mend)
			}
			if _, err := io.WriteString(w, text); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(w, "%d ok, %s, %s\n", counts[hostnet.OK], count(counts[hostnet.Warning], "warning"),
			count(counts[hostnet.Error], "error")); err != nil {
			return err
		}
	}
	if counts[hostnet.Error] > 0 {
		return errSilent
	}
	return nil
}
