package cni

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// trustState refuses a state directory that another user could change: whoever writes there says which addresses are
// free and whose an interface is. DEL and GC work with it all the same, or nobody could get rid of a pod.
func trustState(stateDir string) error {
	cni := filepath.Join(stateDir, "cni")
	dirs := []string{stateDir, cni, filepath.Join(cni, "pods"), filepath.Join(cni, "bridges"), filepath.Join(cni, "ipam")}
	networks, err := os.ReadDir(dirs[len(dirs)-1]) // each says which addresses are taken
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return fail(CodeState, "the state directory can't be used: %w", err)
	}
	for _, network := range networks {
		if network.IsDir() {
			dirs = append(dirs, filepath.Join(cni, "ipam", network.Name()))
		}
	}
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // it is made, for nobody else
		case err != nil:
			return fail(CodeState, "the state directory can't be used: %w", err)
		case !info.IsDir():
			return fail(CodeState, "%s is no directory: remove it, or set stateDir to another one", dir)
		}
		if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != os.Geteuid() {
			return fail(CodeState, "state directory %s belongs to user %d, who could change who has which address: "+
				"`chown -R %d %s`, or set stateDir to another one", dir, owner, os.Geteuid(), dir)
		}
		if mode := info.Mode().Perm(); mode&0o022 != 0 {
			return fail(CodeState, "state directory %s has mode %04o, so others could change who has which address: "+
				"`chmod go-w %s`", dir, mode, dir)
		}
	}
	return nil
}
