// Package remember keeps what a node knew of its cluster on disk, so that a node that starts while its control plane
// cannot be reached comes up as it was, and so that the claims that were in force still are.
package remember

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/atomicfile"
)

// File is the name of the file, in the node's state directory.
const File = "cluster.json"

// version is that of the file's form. Another one is as good as no file.
const version = 1

// A Cluster is what is kept.
type Cluster struct {
	Node  string         // whose knowledge it is
	CIDRs []netip.Prefix // the cluster's ranges
	Nodes []control.Node // those whose claims were in force
}

type form struct {
	Version int `json:"version"`
	Cluster
}

// Write replaces what is kept in the directory.
func Write(dir string, c Cluster) error {
	data, err := json.MarshalIndent(form{version, c}, "", " ")
	if err != nil {
		return fmt.Errorf("what is known of the cluster: %w", err)
	}
	return atomicfile.Replace(filepath.Join(dir, File), append(data, '\n'), 0o600)
}

// Read is what is kept in the directory; nil: nothing is. What cannot be read is an error, and no reason not to go on
// without.
func Read(dir string) (*Cluster, error) {
	path := filepath.Join(dir, File)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("what was known of the cluster: %w", err)
	}
	var f form
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%s: %w; it is written anew when the control plane answers", path, err)
	}
	if f.Version != version {
		return nil, fmt.Errorf("%s: it has version %d, and this program knows %d; it is written anew when the control plane "+
			"answers", path, f.Version, version)
	}
	return &f.Cluster, nil
}
