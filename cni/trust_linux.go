package cni

import (
	"errors"
	"fmt"
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
	unusable := func(err error) error {
		hint := "see what is there, and whether its file system is well (dmesg)"
		if errors.Is(err, fs.ErrPermission) {
			hint = runAsRoot()
		}
		return fail(CodeState, "the state directory can't be used: %w: %s", err, hint)
	}
	networks, err := os.ReadDir(dirs[len(dirs)-1]) // each says which addresses are taken
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return unusable(err)
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
			return unusable(err)
		case !info.IsDir():
			return fail(CodeState, "%s is no directory: remove it, or set stateDir to another one", dir)
		}
		owner := int(info.Sys().(*syscall.Stat_t).Uid)
		if owner == 0 && os.Geteuid() != 0 {
			return fail(CodeState, "state directory %s belongs to root: %s", dir, runAsRoot())
		}
		if owner != os.Geteuid() {
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

// runAsRoot says what to do where root's permission is missing.
func runAsRoot() string {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Sprintf("run as root, the plugin runs as user %d", uid)
	}
	return "the plugin runs as root already, so see what keeps it from there (a security module, capabilities)"
}
