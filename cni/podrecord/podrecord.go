// Package podrecord keeps what is attached to a node, one file per interface of a pod, in <state directory>/cni/pods/.
// The CNI plugin writes a record before it changes anything in the kernel and removes it after everything is undone,
// so that whatever a killed plugin left can be found. The daemon reads them for `warren pods`.
//
// # Concurrency
//
// Reading needs no lock: a file is there whole or not at all. Writers of one record exclude each other (the plugin
// holds a lock for each attachment).
package podrecord

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/atomicfile"
	"golang.org/x/sys/unix"
)

// HostPrefix begins the name of every host interface that the plugin makes.
const HostPrefix = "wrn"

const (
	hostDigits = 11 // with HostPrefix 14 bytes; the kernel takes 15 (IFNAMSIZ - 1)
	suffix     = ".json"
	indent     = "  "
)

// Record is one interface of a pod.
type Record struct {
	ContainerID string         `json:"containerID"`
	IfName      string         `json:"ifname"` // in the pod
	Netns       string         `json:"netns"`  // path, as the runtime gave it
	Network     string         `json:"network"`
	Mode        string         `json:"mode"` // "routed" or "bridge"
	HostIfName  string         `json:"hostIfname"`
	Bridge      string         `json:"bridge,omitempty"`
	MAC         string         `json:"mac,omitempty"`     // of the pod's interface
	MTU         int            `json:"mtu,omitempty"`     // of both ends, bytes; 0: not recorded
	Addresses   []netip.Addr   `json:"addresses"`         // what it has, or is about to get
	Subnets     []netip.Prefix `json:"subnets,omitempty"` // mode bridge: what the pod takes to be on its link
	// IPAM is the section of the configuration with the plugin that gives the addresses; none when they are Warren's own.
	IPAM         json.RawMessage `json:"ipam,omitempty"`
	PodName      string          `json:"podName,omitempty"`
	PodNamespace string          `json:"podNamespace,omitempty"`
	PodUID       string          `json:"podUID,omitempty"`
	Since        time.Time       `json:"since"`
}

// DHCP reports whether the pod gets its address by DHCP, over its interface: whoever gives it has to reach the pod
// before, and as long as it lives.
func (r *Record) DHCP() bool { return r.Bridge != "" && UsesDHCP(r.IPAM) }

// UsesDHCP reports whether a section ipam names the plugin that speaks DHCP.
func UsesDHCP(section json.RawMessage) bool {
	var ipam struct {
		Type string `json:"type"`
	}
	return json.Unmarshal(section, &ipam) == nil && ipam.Type == "dhcp"
}

// HostIfName is the name of the host's end of an interface: the same for every ADD, DEL and CHECK of it.
func HostIfName(containerID, ifname string) string {
	sum := sha256.Sum256([]byte(containerID + "\x00" + ifname)) // a NUL can be in neither
	return HostPrefix + hex.EncodeToString(sum[:])[:hostDigits]
}

// IsHostIfName reports whether name has the form of HostIfName.
func IsHostIfName(name string) bool {
	digits, ok := strings.CutPrefix(name, HostPrefix)
	return ok && len(digits) == hostDigits && strings.Trim(digits, "0123456789abcdef") == ""
}

// Dir is the directory of the records.
func Dir(stateDir string) string { return filepath.Join(stateDir, "cni", "pods") }

func path(stateDir, hostIfName string) string { return filepath.Join(Dir(stateDir), hostIfName+suffix) }

// Create writes the first record of an interface, flushed to the disk. errors.Is(err, fs.ErrExist) holds when there is
// one already.
func Create(stateDir string, r Record) error { return write(stateDir, r, atomicfile.Create) }

// Replace writes the record of an interface anew, flushed to the disk.
func Replace(stateDir string, r Record) error { return write(stateDir, r, atomicfile.Replace) }

func write(stateDir string, r Record, put func(string, []byte, fs.FileMode) error) error {
	data, err := json.MarshalIndent(r, "", indent)
	if err != nil {
		return fmt.Errorf("encoding a pod record: %w", err)
	}
	if err := os.MkdirAll(Dir(stateDir), 0o700); err != nil {
		return fmt.Errorf("making the directory of pod records: %w", err)
	}
	if err := put(path(stateDir, r.HostIfName), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the record of %s: %w", r.HostIfName, err)
	}
	return nil
}

// Read reads one record. errors.Is(err, fs.ErrNotExist) holds when there is none; any other error says that the file is
// there and can't be used.
func Read(stateDir, hostIfName string) (Record, error) {
	p := path(stateDir, hostIfName)
	data, err := os.ReadFile(p)
	if err != nil {
		return Record{}, fmt.Errorf("reading a pod record: %w", err)
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("pod record %s is not what Warren writes: %w", p, err)
	}
	if r.HostIfName != hostIfName || r.ContainerID == "" || r.IfName == "" {
		return Record{}, fmt.Errorf("pod record %s is not about interface %s", p, hostIfName)
	}
	return r, nil
}

// Remove removes the record of a host interface and what a killed writer left of one. None there is no error.
func Remove(stateDir, hostIfName string) error {
	err := atomicfile.Remove(path(stateDir, hostIfName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the record of %s: %w", hostIfName, err)
	}
	return nil
}

// List reads all records, in the order of their file names. It returns every record that can be read, and an error that
// names those that can't. No directory means no pods.
func List(stateDir string) ([]Record, error) {
	names, err := Names(stateDir)
	if err != nil {
		return nil, err
	}
	var records []Record
	var bad []error
	for _, name := range names {
		switch r, err := Read(stateDir, name); {
		case err == nil:
			records = append(records, r)
		case !errors.Is(err, fs.ErrNotExist): // else removed since the directory was read
			bad = append(bad, err)
		}
	}
	return records, errors.Join(bad...)
}

// Unlike reads the records of pods that are attached in another way than own: in another mode, or to another bridge,
// or where an IPAM plugin gave the addresses of either. Errors are as List's. On a node whose pods are all attached in
// one way it only looks at the files' lines: this is done for every pod that is added.
func Unlike(stateDir string, own Record) ([]Record, error) {
	names, err := Names(stateDir)
	if err != nil {
		return nil, err
	}
	var records []Record
	var bad []error
	for _, name := range names {
		if name == own.HostIfName || own.IPAM == nil && attachedLike(path(stateDir, name), own) {
			continue
		}
		switch r, err := Read(stateDir, name); {
		case err == nil && (r.Mode != own.Mode || r.Bridge != own.Bridge || r.IPAM != nil || own.IPAM != nil):
			records = append(records, r)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			bad = append(bad, err)
		}
	}
	return records, errors.Join(bad...)
}

// attachedLike reports whether a record has the lines that say the same mode and bridge as own's, and none about an
// IPAM plugin. No value of another field can hold such a line, as JSON has no line break within a string. False says
// nothing.
func attachedLike(path string, own Record) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var buffer [2048]byte // more than nearly every record has
	n, err := unix.Read(fd, buffer[:])
	if err != nil || n <= 0 || n == len(buffer) {
		return false
	}
	has := func(line string) bool { return bytes.Contains(buffer[:n], []byte("\n"+indent+line)) }
	bridge := has(fmt.Sprintf("\"bridge\": %q,\n", own.Bridge))
	if own.Bridge == "" {
		bridge = !has("\"bridge\":")
	}
	return bridge && has(fmt.Sprintf("\"mode\": %q,\n", own.Mode)) && !has("\"ipam\":") && buffer[n-1] == '\n'
}

// OnBridge reports whether a pod is on a bridge, or may be: a record that can't be read counts.
func OnBridge(stateDir, bridge string) bool {
	names, err := Names(stateDir)
	if err != nil {
		return true
	}
	for _, name := range names {
		rec, err := Read(stateDir, name)
		if err == nil && rec.Bridge != bridge || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return true
	}
	return false
}

// Names lists the host interfaces that have a record, or the beginning of one, readable or not.
func Names(stateDir string) ([]string, error) {
	entries, err := os.ReadDir(Dir(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the pod records: %w", err)
	}
	var names []string
	for _, e := range entries {
		file := e.Name()
		if atomicfile.IsTemp(file) {
			file = strings.TrimSuffix(strings.TrimPrefix(file, "."), ".tmp")
		}
		name, ok := strings.CutSuffix(file, suffix)
		if ok && IsHostIfName(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
