package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/warren-net/warren/cni/install"
	"github.com/warren-net/warren/internal/nodefile"
	"github.com/warren-net/warren/node/config"
)

// pluginName is the file name of the CNI plugin.
const pluginName = "warren-cni"

// ownPlugin is the plugin that came with this program.
func ownPlugin() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("where this program is: %w; name the plugin with --binary", err)
	}
	return pluginOf(filepath.Dir(self)), nil
}

// pluginOf is the plugin of a program in bin: beside it, as it is built and in the image, or where packages put what
// nobody runs by hand. Where there is none it is looked for beside the program.
func pluginOf(bin string) string {
	beside := filepath.Join(bin, pluginName)
	packaged := filepath.Join(filepath.Dir(bin), "libexec", "warren", pluginName)
	if _, err := os.Stat(beside); err != nil {
		if _, err := os.Stat(packaged); err == nil {
			return packaged
		}
	}
	return beside
}

// readNode reads what the node wrote about itself. early: it need not have run yet; then the answer is nil, and the
// list says what the configuration does.
func readNode(cfg *config.Config, early bool) (*nodefile.File, error) {
	node, err := nodefile.Read(cfg.RunDir)
	switch {
	case err == nil:
		return &node, nil
	case !errors.Is(err, nodefile.ErrMissing):
		return nil, err
	case early:
		return nil, nil
	}
	return nil, fmt.Errorf("%s: %w with this run directory, so the plugin would have no addresses to give: start "+
		"`warren up` first, or say --before-up", filepath.Join(cfg.RunDir, nodefile.Name), nodefile.ErrMissing)
}

// notYet adds to the report that the node has not run.
func notYet(r *install.Report) {
	r.Done = append(r.Done, "the node has not run yet: pods wait for it (the plugin says \"try again later\")")
}
