package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// namePrefix begins the name of everything that a lab leaves visible on the machine.
const namePrefix = "wrn-"

// ownerFile in a lab's directory says whose lab it is.
const ownerFile = "owner.json"

var validPrefix = regexp.MustCompile(`^[a-z0-9]{1,12}$`)

func checkPrefix(prefix string) error {
	if !validPrefix.MatchString(prefix) {
		return fmt.Errorf("lab prefix %q: want 1 to 12 lower-case letters or digits", prefix)
	}
	return nil
}

func nsName(prefix, role string, pid int) string {
	return fmt.Sprintf("%s%s-%s-%d", namePrefix, prefix, role, pid)
}

func dirPattern(prefix string, pid int) string {
	return fmt.Sprintf("%s%s-%d-*", namePrefix, prefix, pid)
}

// An owner is the process that a lab belongs to. Start tells it from a later process with the same id.
type owner struct {
	Pid   int    `json:"pid"`
	Start string `json:"start"` // field 22 of /proc/PID/stat, clock ticks since boot
	Kept  bool   `json:"kept"`
}

func newOwner() (owner, error) {
	start, err := startTime(os.Getpid())
	return owner{Pid: os.Getpid(), Start: start}, err
}

func (o owner) write(dir string) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, ownerFile), b)
}

// alive reports whether the owner still runs. Without a recorded start time its id alone has to do.
func (o owner) alive() bool {
	start, err := startTime(o.Pid)
	return err == nil && (o.Start == "" || o.Start == start)
}

func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", fmt.Errorf("start time of process %d: %w", pid, err)
	}
	// The second field is the program's name in parentheses and may hold blanks: count from behind it.
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return "", fmt.Errorf("start time of process %d: /proc/%d/stat has an unknown form", pid, pid)
	}
	return fields[19], nil
}

// replaceFile writes a file so that a reader sees the old or the new content, never a part.
func replaceFile(path string, content []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(tmp.Name()))
	}
	return nil
}

// SweepMode says which labs Sweep removes.
type SweepMode int

// What Sweep removes.
const (
	SweepAbandoned SweepMode = iota // labs whose process was killed
	SweepKept                       // those, and the labs that were kept on purpose
)

// Sweep removes what labs with this prefix left behind whose process is no more: their processes, namespaces and
// directories. It returns the names of what it removed. A running lab is never touched.
func Sweep(prefix string, mode SweepMode) ([]string, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, err
	}
	names, dirs, err := remains(prefix)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for pid := range owners(names, dirs) {
		o := owner{Pid: pid}
		for _, dir := range dirs[pid] {
			if b, err := os.ReadFile(filepath.Join(dir, ownerFile)); err == nil {
				// A record that was cut off leaves the process id, which the names have as well.
				_ = json.Unmarshal(b, &o)
			}
		}
		if o.Pid = pid; o.alive() || (o.Kept && mode != SweepKept) {
			continue
		}
		errs = append(errs, removeAll(names[pid]))
		for _, dir := range dirs[pid] {
			errs = append(errs, os.RemoveAll(dir))
		}
		removed = append(append(removed, names[pid]...), dirs[pid]...)
	}
	return removed, errors.Join(errs...)
}

// Remains lists the namespaces and directories that labs with this prefix have on the machine now, running or not.
func Remains(prefix string) ([]string, error) {
	names, dirs, err := remains(prefix)
	var all []string
	for pid := range owners(names, dirs) {
		all = append(append(all, names[pid]...), dirs[pid]...)
	}
	return all, err
}

func owners(names, dirs map[int][]string) map[int]bool {
	pids := make(map[int]bool)
	for pid := range names {
		pids[pid] = true
	}
	for pid := range dirs {
		pids[pid] = true
	}
	return pids
}

// remains lists the labs' namespaces and directories by the process that made them.
func remains(prefix string) (names, dirs map[int][]string, err error) {
	names, dirs = make(map[int][]string), make(map[int][]string)
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("listing namespaces: %w", err)
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), namePrefix+prefix+"-")
		if pid, err := strconv.Atoi(rest[strings.LastIndexByte(rest, '-')+1:]); ours && err == nil {
			names[pid] = append(names[pid], e.Name())
		}
	}
	found, err := filepath.Glob(filepath.Join(os.TempDir(), namePrefix+prefix+"-*-*"))
	if err != nil {
		return nil, nil, fmt.Errorf("listing lab directories: %w", err)
	}
	for _, dir := range found {
		rest := strings.TrimPrefix(filepath.Base(dir), namePrefix+prefix+"-")
		first, _, _ := strings.Cut(rest, "-")
		if pid, err := strconv.Atoi(first); err == nil {
			dirs[pid] = append(dirs[pid], dir)
		}
	}
	return names, dirs, nil
}
