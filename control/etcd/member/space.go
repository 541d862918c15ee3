package member

import (
	"errors"
	"fmt"

	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"
)

// Space that has to be free, in bytes. A new member writes its database and two files of its log at once, each of them
// allocated as a whole; one that has them needs room to go on.
const (
	spaceNew   = 160 << 20
	spaceGoing = 8 << 20
)

// errPanic says that etcd gave up in a way that is meant to end the process.
var errPanic = errors.New("it gave up")

// start starts the etcd. Where the disk is full etcd panics, and the node, which could go on, would end with it.
func start(cfg *embed.Config, o *Options) (server *embed.Etcd, err error) {
	need := uint64(spaceGoing)
	if !HasData(o.StateDir) {
		need = spaceNew
	}
	if err := hasSpace(cfg.Dir, need); err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v: is %s in order?", errPanic, p, cfg.Dir)
		}
	}()
	return embed.StartEtcd(cfg)
}

// hasSpace checks that so many bytes can be written below dir.
func hasSpace(dir string, need uint64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < need { //nolint:gosec // a size is not negative
		return fmt.Errorf("%s has %d MiB of free space, and %d MiB are needed: make room there, or use another --state-dir",
			dir, free>>20, need>>20)
	}
	return nil
}
