package install

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/atomicfile"
)

// RemoveOptions are what Remove needs.
type RemoveOptions struct {
	Dirs
	StateDir string // of the daemon; the list's counts, where there is one
	Force    bool   // also an edited list, and also while pods are attached
}

// Remove takes the list and then the plugin away, as far as they are Warren's. Done twice, the second time does
// nothing. The plugin stays while another list names it.
func Remove(o RemoveOptions) (Report, error) {
	var r Report
	unlock, err := o.lock()
	if err != nil {
		return r, err
	}
	defer unlock()
	_, missing := os.Lstat(o.list())
	remove, err := o.removableList(&r)
	if err != nil {
		return r, err
	}
	if remove {
		if err := atomicfile.Remove(o.list()); err != nil {
			return r, explain(o.list(), err)
		}
		if missing != nil {
			r.done("%s: not there", o.list())
		} else {
			r.done("%s: removed", o.list())
		}
	}
	if o.removableBinary(&r) {
		if err := atomicfile.Remove(o.binary()); err != nil {
			return r, explain(o.binary(), err)
		}
		r.done("%s: removed", o.binary())
	}
	return r, nil
}

// removableList reports whether the list, or what a killed installer left of it, is to be removed. It refuses what the
// operator should look at first.
func (o RemoveOptions) removableList(r *Report) (bool, error) {
	data, err := os.ReadFile(o.list())
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return false, explain(o.list(), err)
	}
	n, ours, edited := networkOf(data)
	stateDir := o.StateDir
	switch {
	case missing:
		if _, err := os.Lstat(o.binary()); errors.Is(err, fs.ErrNotExist) {
			return true, nil // nothing to keep for anybody
		}
	case !ours:
		r.done("%s: left, it does not name %s", o.list(), pluginType)
		return false, nil
	case edited && !o.Force:
		return false, fmt.Errorf("%s was edited by hand: nothing was removed; remove it with --force, or by hand", o.list())
	case n.StateDir != "":
		stateDir = n.StateDir
	}
	attached, err := attachedTo(stateDir, n.Name)
	if err != nil {
		return false, err
	}
	if len(attached) > 0 {
		if !o.Force {
			return false, fmt.Errorf("pods are attached (%s), and the runtime needs the plugin to delete them: nothing was "+
				"removed; delete the pods first (`warren pods`), or use --force", few(attached))
		}
		r.warn("pods are attached (%s) that the runtime can't delete until the plugin is back", few(attached))
	}
	return true, nil
}

// attachedTo names the pods of a network, or of all when it is not known, by their records. One that can't be read may
// be the network's.
func attachedTo(stateDir, network string) ([]string, error) {
	names, err := podrecord.Names(stateDir)
	if err != nil {
		return nil, err
	}
	var pods []string
	for _, name := range names {
		switch rec, err := podrecord.Read(stateDir, name); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			pods = append(pods, name)
		case network != "" && rec.Network != network:
		case rec.PodName != "":
			pods = append(pods, strings.TrimPrefix(rec.PodNamespace+"/"+rec.PodName, "/"))
		default:
			pods = append(pods, "container "+rec.ContainerID[:min(len(rec.ContainerID), 12)])
		}
	}
	return pods, nil
}

// few names the first ones of a list that may be long.
func few(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// removableBinary reports whether the plugin is there, Warren's, and named by no list any more.
func (o RemoveOptions) removableBinary(r *Report) bool {
	info, err := buildinfo.ReadFile(o.binary())
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Lstat(atomicfile.Temp(o.binary()))
		r.done("%s: not there", o.binary())
		return err == nil // what a killed installer left
	}
	if err != nil || !isPlugin(info.Path) {
		r.done("%s: left, it is not Warren's plugin", o.binary())
		return false
	}
	names, err := lists(o.Conf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.done("%s: left, as the lists in %s can't be listed: %v", o.binary(), o.Conf, err)
		return false
	}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(o.Conf, name))
		if err != nil || strings.Contains(string(data), `"`+pluginType+`"`) {
			r.done("%s: left, as %s needs it", o.binary(), name)
			return false
		}
	}
	return true
}
