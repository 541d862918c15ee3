package lab

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/warren-net/warren/internal/key"
)

// MakeKey gives the node a new key pair: the private half in its state directory, as `wg genkey` prints it, the public
// one in PublicKey, and so in all files that WriteConfigs writes from now on.
func (n *Node) MakeKey() error {
	k := key.NewPrivate()
	n.PublicKey = k.Public()
	if err := os.WriteFile(n.KeyFile(), []byte(k.RevealText()+"\n"), 0o600); err != nil {
		return fmt.Errorf("key of node %s: %w", n.Name, err)
	}
	return nil
}

// KeyFile is where the node's private key lies.
func (n *Node) KeyFile() string { return filepath.Join(n.StateDir, "wireguard.key") }
