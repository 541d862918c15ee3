package install

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/warren-net/warren/internal/atomicfile"
)

// ListName is the name of the configuration list. Runtimes take the first list by name.
const ListName = "10-warren.conflist"

// Dirs are the two directories of a runtime.
type Dirs struct {
	Bin  string // where it looks for plugins
	Conf string // where it looks for configuration lists
}

func (d Dirs) binary() string { return filepath.Join(d.Bin, pluginType) }
func (d Dirs) list() string   { return filepath.Join(d.Conf, ListName) }

// Options are what Install needs.
type Options struct {
	Dirs
	Binary  string // the plugin that is copied
	Network Network
	Force   bool // replace a list that says something else, and a program that is not Warren's
}

// A Report is what was done, or left alone, and what the operator should know; a line each.
type Report struct {
	Done     []string
	Warnings []string
}

func (r *Report) done(format string, args ...any) {
	r.Done = append(r.Done, fmt.Sprintf(format, args...))
}
func (r *Report) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

// Install puts the plugin and its list in place. Done twice, the second time changes nothing. The report tells what was
// done before an error, too.
func Install(o Options) (Report, error) {
	var r Report
	list, err := o.Network.encode()
	if err != nil {
		return r, err
	}
	program, err := readProgram(o.Binary)
	if err != nil {
		return r, err
	}
	if err := o.check(); err != nil {
		return r, err
	}
	unlock, err := o.lock()
	if err != nil {
		return r, err
	}
	defer unlock()
	old, err := o.replaceable(list)
	if err != nil {
		return r, err
	}
	if err := o.foreign(); err != nil {
		return r, err
	}
	if err := put(&r, target{o.binary(), program, 0o755}); err != nil {
		return r, err
	}
	if old != nil && len(differences(old, list)) == 0 {
		if err := unchanged(&r, o.list()); err != nil {
			return r, err
		}
	} else if err := put(&r, target{o.list(), list, 0o644}); err != nil {
		return r, err
	}
	if o.Network.collected() {
		r.done("network %q: a runtime that knows CNI 1.1 removes pods of this network that are not its own (GC): give every "+
			"runtime on this node a list with another --name, or write \"disableGC\": true into it", o.Network.Name)
	}
	o.surroundings(&r)
	return r, nil
}

// readProgram reads the plugin and makes sure that it is Warren's, for this machine.
func readProgram(path string) ([]byte, error) {
	info, err := buildinfo.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no plugin %s: `make build` makes it beside warren; or name it with --binary", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s is not the program %s: name it with --binary (%w)", path, pluginType, err)
	}
	if err := suits(info); err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return os.ReadFile(path)
}

// suits reports why a program is not the plugin for this machine.
func suits(info *buildinfo.BuildInfo) error {
	if !isPlugin(info.Path) {
		return fmt.Errorf("is not the program %s but %q: name it with --binary", pluginType, info.Path)
	}
	for _, s := range info.Settings {
		if s.Key == "GOARCH" && s.Value != runtime.GOARCH {
			return fmt.Errorf("is built for %s and this machine is %s: build it with GOARCH=%s", s.Value, runtime.GOARCH,
				runtime.GOARCH)
		}
	}
	return nil
}

// isPlugin knows the plugin by the path of its main package, which Go writes into every program.
func isPlugin(mainPackage string) bool { return strings.HasSuffix(mainPackage, "/cmd/"+pluginType) }

// check makes sure that both directories are there. They are not made: a directory that no runtime made is most likely
// one that no runtime reads.
func (d Dirs) check() error {
	const bin = "containerd looks for plugins in bin_dir of its config.toml (/opt/cni/bin, Debian's in /usr/lib/cni), " +
		"CRI-O in plugin_dirs of crio.conf, Podman in cni_plugin_dirs of containers.conf, nerdctl in --cni-path"
	const conf = "containerd looks for lists in conf_dir of its config.toml, CRI-O in network_dir of crio.conf, " +
		"Podman in network_config_dir of containers.conf, nerdctl in --cni-netconfpath; all have /etc/cni/net.d unless " +
		"told otherwise"
	for _, dir := range []struct{ path, flag, who string }{
		{d.Bin, "--bin-dir", bin}, {d.Conf, "--conf-dir", conf},
	} {
		info, err := os.Stat(dir.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("directory %s does not exist: install the runtime first, name its directory with %s, or make "+
				"this one (`mkdir -p %s`); %s", dir.path, dir.flag, dir.path, dir.who)
		case err != nil:
			return explain(dir.path, err)
		case !info.IsDir():
			return fmt.Errorf("%s is not a directory: name the runtime's with %s; %s", dir.path, dir.flag, dir.who)
		}
	}
	return nil
}

// replaceable returns the list that is there, nil when there is none, and refuses one that somebody wrote.
func (o Options) replaceable(want []byte) ([]byte, error) {
	have, err := os.ReadFile(o.list())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, explain(o.list(), err)
	case o.Force:
		return have, nil
	}
	if diff := differences(have, want); len(diff) > 0 {
		return nil, fmt.Errorf("%s differs from what would be written: %s. Nothing was changed; give the flags that it was "+
			"made with, or replace it with --force", o.list(), strings.Join(diff, ", "))
	}
	return have, nil
}

// foreign refuses to replace a program that is not Warren's: Remove leaves one alone too.
func (o Options) foreign() error {
	path := o.binary()
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory, and the plugin has to be a file of that name: move it away, or name another "+
			"directory with --bin-dir", path)
	}
	ours, err := isOurs(path)
	if ours || errors.Is(err, fs.ErrNotExist) || o.Force {
		return nil
	}
	return fmt.Errorf("%s is not Warren's plugin (%w). Nothing was changed; move it away, or replace it with --force",
		path, err)
}

// isOurs reports whether a file is the plugin, and otherwise why not.
func isOurs(path string) (bool, error) {
	info, err := buildinfo.ReadFile(path)
	if err == nil && !isPlugin(info.Path) {
		err = fmt.Errorf("it is the program %q", info.Path)
	}
	return err == nil, err
}

// target is a file to be written.
type target struct {
	path    string
	content []byte
	mode    fs.FileMode
}

// put writes a file that is not there as it should be. A program that runs is no hindrance: its file is not written to
// but replaced by another.
func put(r *Report, t target) error {
	have, err := os.ReadFile(t.path)
	if err == nil && bytes.Equal(have, t.content) {
		info, err := os.Stat(t.path)
		if err != nil {
			return explain(t.path, err)
		}
		if info.Mode().Perm()&t.mode == t.mode {
			return unchanged(r, t.path)
		}
	}
	existed := !errors.Is(err, fs.ErrNotExist)
	if err := atomicfile.Replace(t.path, t.content, t.mode); err != nil {
		return explain(t.path, err)
	}
	if existed {
		r.done("%s: replaced", t.path)
	} else {
		r.done("%s: installed", t.path)
	}
	return nil
}

// unchanged removes what a killed installer left beside a file that is as it should be.
func unchanged(r *Report, path string) error {
	temp := atomicfile.Temp(path)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return explain(temp, err)
	}
	r.done("%s: unchanged", path)
	return nil
}

// surroundings warns of what would keep a runtime from using the list.
func (o Options) surroundings(r *Report) {
	for _, name := range o.Network.Chain {
		if _, err := os.Stat(filepath.Join(o.Bin, name)); err != nil {
			r.warn("the list names the plugin %s, which is not in %s: install it there (Debian's containernetworking-plugins "+
				"has it in /usr/lib/cni), unless the runtime looks for plugins in other directories too", name, o.Bin)
		}
	}
	names, err := lists(o.Conf)
	if err != nil {
		r.warn("the other lists in %s can't be listed: %v", o.Conf, err)
	}
	for _, name := range names {
		if name < ListName {
			r.warn("%s sorts before %s, and containerd and CRI-O take the first list: move it out of %s", name, ListName,
				o.Conf)
		}
		data, err := os.ReadFile(filepath.Join(o.Conf, name))
		if err != nil || name == ListName {
			continue
		}
		if n, _, _ := networkOf(data); n.Name == o.Network.Name {
			r.warn("%s has the network's name %q too: Podman and nerdctl find a network by its name, so remove one of the two",
				name, n.Name)
		}
	}
}

// lists names the files of a directory that runtimes read, in the order in which they do (libcni's ConfFiles).
func lists(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
