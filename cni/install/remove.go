package install

import (
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
	n, list, err := o.judgeList()
	if err != nil {
		return r, err
	}
	binary := o.judgeBinary(list.remove)
	if err := o.nobodyNeeds(&r, n, list, binary); err != nil {
		return r, err
	}
	for _, v := range []verdict{list, binary} {
		if v.remove {
			if err := atomicfile.Remove(v.path); err != nil {
				return r, explain(v.path, err)
			}
		}
		r.done("%s: %s", v.path, v.what)
	}
	return r, nil
}

// A verdict says what becomes of a file.
type verdict struct {
	path   string
	remove bool // it, or what a killed installer left of it
	absent bool // only what a killed installer left may be there
	what   string
}

// goes reports whether a file that is there is removed.
func (v verdict) goes() bool { return v.remove && !v.absent }

// judgeList reads the list. It refuses one that the operator should look at first.
func (o RemoveOptions) judgeList() (Network, verdict, error) {
	v := verdict{path: o.list(), remove: true, what: "removed"}
	data, err := os.ReadFile(o.list())
	if errors.Is(err, fs.ErrNotExist) {
		v.absent, v.what = true, "not there"
		return Network{}, v, nil
	}
	if err != nil {
		return Network{}, v, explain(o.list(), err)
	}
	n, ours, edited := networkOf(data)
	switch {
	case !ours:
		v.remove, v.what = false, "left, it does not name "+pluginType
	case edited && !o.Force:
		return n, v, fmt.Errorf("%s was edited by hand: nothing was removed; remove it with --force, or by hand", o.list())
	}
	return n, v, nil
}

// nobodyNeeds refuses to remove what the runtime needs to delete a pod: without the list those of its network, without
// the plugin all.
func (o RemoveOptions) nobodyNeeds(r *Report, n Network, list, binary verdict) error {
	if !list.goes() && !binary.goes() {
		return nil
	}
	stateDir, network := o.StateDir, n.Name
	if list.remove && n.StateDir != "" {
		stateDir = n.StateDir
	}
	if binary.goes() {
		network = ""
	}
	attached, err := attachedTo(stateDir, network)
	if err != nil || len(attached) == 0 {
		return err
	}
	if !o.Force {
		return fmt.Errorf("pods are attached (%s), and the runtime needs the plugin to delete them: nothing was removed; "+
			"delete the pods first (`warren pods`), or use --force", few(attached))
	}
	r.warn("pods are attached (%s) that the runtime can't delete until the plugin is back", few(attached))
	return nil
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

// judgeBinary tells whether the plugin is there, Warren's, and named by no list that stays.
func (o RemoveOptions) judgeBinary(listGoes bool) verdict {
	v := verdict{path: o.binary()}
	ours, err := isOurs(o.binary())
	if errors.Is(err, fs.ErrNotExist) {
		v.remove, v.absent, v.what = true, true, "not there"
		return v
	}
	if !ours {
		v.what = "left, it is not Warren's plugin"
		return v
	}
	names, err := lists(o.Conf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		v.what = fmt.Sprintf("left, as the lists in %s can't be listed: %v", o.Conf, err)
		return v
	}
	for _, name := range names {
		if name == ListName && listGoes {
			continue
		}
		data, err := os.ReadFile(filepath.Join(o.Conf, name))
		if err != nil || strings.Contains(string(data), `"`+pluginType+`"`) {
			v.what = fmt.Sprintf("left, as %s needs it", name)
			return v
		}
	}
	v.remove, v.what = true, "removed"
	return v
}
