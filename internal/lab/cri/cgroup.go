package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// cgroupPrefix begins the name of the control group, in every hierarchy, under which a runtime's pods have theirs; the
// id of the test's process and the node's name follow.
const cgroupPrefix = "wrn-cri-"

func cgroupOf(pid int, node string) string { return fmt.Sprintf("%s%d-%s", cgroupPrefix, pid, node) }

func (r *Runtime) cgroup() string { return cgroupOf(os.Getpid(), r.Node.Name) }

// removeCgroups removes the groups of the runtime's pods, all of whose processes have been killed; some of those may
// still be about to end.
func (r *Runtime) removeCgroups() error {
	return eventually(context.Background(), "control groups of node "+r.Node.Name, func() error {
		groups, err := cgroups(r.cgroup())
		return errors.Join(err, removeGroups(groups))
	})
}

// sweepCgroups removes what runs left that were killed themselves. Their processes are dead: lab.New sees to that.
func sweepCgroups() error {
	groups, err := cgroups(cgroupPrefix + "*")
	if err != nil {
		return err
	}
	abandoned := slices.DeleteFunc(groups, func(group string) bool {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(group), cgroupPrefix), "-")
		_, err := os.Stat(filepath.Join("/proc", pid))
		_, number := strconv.Atoi(pid)
		return number != nil || err == nil
	})
	return removeGroups(abandoned)
}

// cgroups finds groups of the first level: of version 1, where each hierarchy has its directory, and of version 2.
func cgroups(pattern string) ([]string, error) {
	deep, err := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", pattern))
	if err != nil {
		return nil, err
	}
	flat, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", pattern))
	return append(deep, flat...), err
}

// removeGroups removes groups with those inside, the inner ones first.
func removeGroups(groups []string) error {
	var errs []error
	for _, group := range groups {
		var dirs []string
		err := filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// MakeCgroup makes the group, in every hierarchy, under which a kubelet is to make those of its pods, and returns its
// path. It goes with the node.
func (r *Runtime) MakeCgroup() (string, error) {
	procs, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil {
		procs = []string{"/sys/fs/cgroup/cgroup.procs"} // version 2 alone
	}
	for _, file := range procs {
		hierarchy := filepath.Dir(file)
		group := filepath.Join(hierarchy, r.cgroup())
		if err := os.MkdirAll(group, 0o755); err != nil {
			return "", fmt.Errorf("control group of node %s: %w", r.Node.Name, err)
		}
		// A cpuset of version 1 begins without processors and memory, and then takes no process.
		for _, set := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(hierarchy, set))
			if err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(group, set), value, 0o644); err != nil {
				return "", fmt.Errorf("control group of node %s: %w", r.Node.Name, err)
			}
		}
	}
	return "/" + r.cgroup(), nil
}
