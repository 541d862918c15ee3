package etcd

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/internal/atomicfile"
)

// Dir is where everything of this package is kept in Warren's state directory.
func Dir(stateDir string) string { return filepath.Join(stateDir, "etcd") }

func stateFile(stateDir string) string { return filepath.Join(Dir(stateDir), "node.json") }

// A state is what a node remembers of itself: who it is, and what it had.
type state struct {
	Version  int              `json:"version"`
	ID       string           `json:"id"`
	Network  string           `json:"network"`
	Node     string           `json:"node"`
	Since    int64            `json:"since,omitempty"`
	Lease    clientv3.LeaseID `json:"lease,omitempty"`
	PodCIDRs []netip.Prefix   `json:"podCIDRs,omitempty"`
	Members  []string         `json:"members,omitempty"` // addresses of members that were added since
}

// loadState reads what the node remembers. One that remembers nothing gets an id; what it had in another network or
// under another name is none of this one's.
func loadState(cfg *Config) (*state, error) {
	path := stateFile(cfg.StateDir)
	data, err := os.ReadFile(path)
	s := &state{}
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("what this node remembers of itself: %w", err)
	default:
		if err := json.Unmarshal(data, s); err != nil || s.ID == "" {
			// Not an end: the node gets its name and CIDRs back by its name.
			cfg.Log.Warn("what this node remembers of itself cannot be read, and is written anew", "file", path, "error", err)
			s = &state{}
		} else if s.Version > recordVersion {
			return nil, fmt.Errorf("%s has version %d: %w: upgrade Warren", path, s.Version, ErrNewer)
		}
	}
	if s.Network != cfg.Network || s.Node != cfg.Node {
		s = &state{}
	}
	if s.ID == "" {
		s.ID = newID()
	}
	s.Version, s.Network, s.Node = recordVersion, cfg.Network, cfg.Node
	return s, s.save(cfg.StateDir)
}

// rememberedMembers are those that the node's source has heard of. A client can do without.
func rememberedMembers(cfg *Config) []string {
	data, err := os.ReadFile(stateFile(cfg.StateDir))
	if err != nil {
		return nil
	}
	var s state
	if json.Unmarshal(data, &s) != nil || s.Network != cfg.Network {
		return nil
	}
	return s.Members
}

func (s *state) save(stateDir string) error {
	if err := MakeDir(Dir(stateDir)); err != nil {
		return err
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := stateFile(stateDir)
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data)+"\n" {
		return nil
	}
	if err := atomicfile.Replace(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("remember who this node is: %w", err)
	}
	return nil
}

// MakeDir makes a directory that only its owner can look into, with the directories above it.
func MakeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// newID is a name for a host that no other has.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}
