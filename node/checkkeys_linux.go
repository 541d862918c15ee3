package node

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/node/config"
)

// checkKeys looks at the files with keys that a start reads, for what it would refuse.
func checkKeys(cfg *config.Config) []hostnet.Finding {
	return append([]hostnet.Finding{checkOwnKey(cfg)}, checkPreshared(cfg)...)
}

func checkOwnKey(cfg *config.Config) hostnet.Finding {
	f := hostnet.Finding{Level: hostnet.Error, What: "key"}
	if !uses(cfg, cfg.Peers(cfg.State), true) {
		f.Level = hostnet.Warning // the node starts, and can encrypt nothing until a restart
	}
	file := filepath.Join(cfg.StateDir, key.File)
	ring, err := key.Load(cfg.StateDir)
	switch {
	case errors.Is(err, key.ErrNone) && cfg.Self.PublicKey.IsZero():
		f.Level, f.Why = hostnet.OK, fmt.Sprintf("%s is made by the first start", file)
		return f
	case errors.Is(err, key.ErrNone):
		f.Why, f.Mend = lostKey(cfg)
		return f
	case err != nil:
		f.Why, f.Mend = err.Error(), "`warren key public` says when it is right"
		return f
	}
	if _, err := preferred(ring, cfg); err != nil {
		f.Why = fmt.Sprintf("publicKey %s of node %s in %s is not this node's key", cfg.Self.PublicKey, cfg.Node, cfg.File)
		f.Mend = fmt.Sprintf("put %s there on all nodes, or restore %s", ring.Newest().Public(), file)
		return f
	}
	f.Level, f.Why = hostnet.OK, fmt.Sprintf("%s is the one in the list", ring.Newest().Public())
	switch {
	case cfg.Self.PublicKey.IsZero():
		f.Why = fmt.Sprintf("the public half is %s", ring.Newest().Public())
	case ring.Rotating():
		f.Level, f.Why = hostnet.Warning, fmt.Sprintf("a rotation is under way: the new key is %s, and %s has %s",
			ring.Newest().Public(), cfg.File, cfg.Self.PublicKey)
		f.Mend = "when all nodes have the new one: warren key rotate --finish"
	}
	return f
}

// checkPreshared looks at the preshared keys of all peers that have a key, as the plan reads them also for those that
// are plaintext now.
func checkPreshared(cfg *config.Config) (found []hostnet.Finding) {
	seen := make(map[string]bool)
	for _, peer := range cfg.Peers(cfg.State) {
		file := peer.PresharedKeyFile
		if file == "" || peer.PublicKey.IsZero() || seen[file] {
			continue
		}
		seen[file] = true
		f := hostnet.Finding{Level: hostnet.OK, What: "preshared key", Why: file + " holds one"}
		if _, err := key.LoadPreshared(file); err != nil {
			f.Level, f.Why = hostnet.Error, fmt.Sprintf("of %s: %v", peer.Name, err)
			f.Mend = "the same key in both sides' files, of mode 0600: `wg genpsk` makes one"
		}
		found = append(found, f)
	}
	return found
}
