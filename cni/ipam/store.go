package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend"
	"github.com/warren-net/warren/internal/atomicfile"
	"golang.org/x/sys/unix"
)

const (
	lockName   = ".lock" // no network can have this name
	lastPrefix = "last."
)

// errNotLocked guards the store: host-local's allocator does not look at what Lock returned.
var errNotLocked = errors.New("the address store is not locked")

// owner is the content of an address file.
type owner struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Entry is one address in use.
type Entry struct {
	Addr        netip.Addr
	ContainerID string
	IfName      string
	Err         error // why the owner can't be told; the two names are empty then
	Other       bool  // another network's, of which no more is looked at
}

// Store keeps the addresses of one network. It implements backend.Store of host-local's allocator.
type Store struct {
	root, network, dir string
	wait               time.Duration
	lock               *os.File // held while not nil
	others             []string // directories of the other networks, read when the lock was taken
}

var _ backend.Store = (*Store)(nil)

// Open opens the store of a network under root; directories are made by the first Lock. wait bounds how long Lock waits
// for other processes.
func Open(root, network string, wait time.Duration) (*Store, error) {
	if network == "" || strings.ContainsAny(network, "/\x00") || strings.HasPrefix(network, ".") {
		return nil, fmt.Errorf("network name %q can't name a directory: use letters, digits, dots and dashes", network)
	}
	return &Store{root: root, network: network, dir: filepath.Join(root, network), wait: wait}, nil
}

// Used reports whether an address of this network was ever given; when not, there is nothing to release.
func (s *Store) Used() (bool, error) {
	_, err := os.Lstat(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Lock takes the lock of all address stores under the same root, and removes what killed writers left.
func (s *Store) Lock() error {
	if s.lock != nil {
		return errors.New("the address store is locked already")
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("making the address directory: %w", err)
	}
	lock, err := flock(filepath.Join(s.root, lockName), s.wait)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := s.prepare(); err != nil {
		return errors.Join(err, s.Unlock())
	}
	return nil
}

// prepare removes leftover temporary files and learns which other networks there are.
func (s *Store) prepare() error {
	var err error
	if s.others, err = s.otherNetworks(); err != nil {
		return err
	}
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("listing the addresses in use: %w", err)
	}
	for _, f := range files {
		if atomicfile.IsTemp(f.Name()) {
			err := os.Remove(filepath.Join(s.dir, f.Name()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EROFS) {
				return fmt.Errorf("removing a leftover: %w", err)
			}
		}
	}
	return nil
}

// otherNetworks lists the directories of the other networks.
func (s *Store) otherNetworks() ([]string, error) {
	networks, err := os.ReadDir(s.root)
	if err != nil {
		return nil, fmt.Errorf("listing the networks: %w", err)
	}
	var dirs []string
	for _, n := range networks {
		if n.IsDir() && n.Name() != s.network {
			dirs = append(dirs, filepath.Join(s.root, n.Name()))
		}
	}
	return dirs, nil
}

// Unlock releases the lock.
func (s *Store) Unlock() error {
	if s.lock == nil {
		return errNotLocked
	}
	err := s.lock.Close()
	s.lock = nil
	return err
}

// Close releases what the store holds.
func (s *Store) Close() error {
	if s.lock != nil {
		return s.Unlock()
	}
	return nil
}

func (s *Store) path(addr netip.Addr) string { return filepath.Join(s.dir, addr.String()) }

func addrOf(ip net.IP) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return addr, fmt.Errorf("%v is not an IP address", ip)
	}
	return addr.Unmap(), nil
}

// taken reports whether this network or another one has an address in use.
func (s *Store) taken(addr netip.Addr) (bool, error) {
	for _, dir := range slices.Concat([]string{s.dir}, s.others) {
		if _, err := os.Lstat(filepath.Join(dir, addr.String())); err == nil {
			return true, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("looking for %s among the addresses in use: %w", addr, err)
		}
	}
	return false, nil
}

// Reserve takes an address for an interface of a container: true when it was free, or was this interface's already. A
// loss of power, which ends the pod as well, leaves the reservation whole or takes it away. The store must be locked.
func (s *Store) Reserve(id, ifname string, ip net.IP, rangeID string) (bool, error) {
	if s.lock == nil {
		return false, errNotLocked
	}
	addr, err := addrOf(ip)
	if err != nil {
		return false, err
	}
	if taken, err := s.taken(addr); taken || err != nil {
		held, readErr := s.read(addr)
		return err == nil && readErr == nil && held == owner{id, ifname}, err
	}
	data, err := json.Marshal(owner{id, ifname})
	if err != nil {
		return false, fmt.Errorf("encoding the owner of %s: %w", addr, err)
	}
	switch err := atomicfile.Create(s.path(addr), append(data, '\n'), 0o600); {
	case errors.Is(err, fs.ErrExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("reserving %s: %w", addr, err)
	}
	s.remember(addr, rangeID)
	return true, nil
}

// remember notes the address given last. It is written over the one before and not flushed, and an error is not
// reported: all that a lost or broken one costs is that the round robin begins anew. All are of one length, so that
// nothing of a longer one stays.
func (s *Store) remember(addr netip.Addr, rangeID string) {
	f, err := os.OpenFile(filepath.Join(s.dir, lastPrefix+rangeID), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	const longest = len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	_, _ = fmt.Fprintf(f, "%-*s\n", longest, addr)
	_ = f.Close()
}

// LastReservedIP returns the address given last, or an error for which os.IsNotExist holds when none is known.
func (s *Store) LastReservedIP(rangeID string) (net.IP, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, lastPrefix+rangeID))
	if err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(string(data), "\n")
	addr, err := netip.ParseAddr(strings.TrimSpace(first))
	if err != nil {
		return nil, fs.ErrNotExist // a torn or foreign file: the round robin begins anew
	}
	return addr.AsSlice(), nil
}

// Release frees those of some addresses that an interface of a container has. It returns those whose file does not say
// who has them: the caller may know. The store must be locked.
func (s *Store) Release(id, ifname string, addrs []netip.Addr) (unreadable []netip.Addr, err error) {
	var own []netip.Addr
	for _, addr := range addrs {
		switch o, err := s.read(addr); {
		case err == nil && o == (owner{id, ifname}):
			own = append(own, addr)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			unreadable = append(unreadable, addr)
		}
	}
	return unreadable, s.Free(own...)
}

// ReleaseByID frees the addresses of one interface of a container, for which it looks at every address in use. None
// held is no error. The store must be locked.
func (s *Store) ReleaseByID(id, ifname string) error {
	entries, err := s.Entries()
	if err != nil {
		return err
	}
	var addrs []netip.Addr
	for _, e := range entries {
		if e.Err == nil && e.ContainerID == id && e.IfName == ifname {
			addrs = append(addrs, e.Addr)
		}
	}
	return s.Free(addrs...)
}

// Free frees addresses, whoever holds them. One that is free already is no error. The store must be locked.
func (s *Store) Free(addrs ...netip.Addr) error {
	if s.lock == nil {
		return errNotLocked
	}
	freed := false
	for _, addr := range addrs {
		switch err := os.Remove(s.path(addr)); {
		case err == nil:
			freed = true
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("freeing %s: %w", addr, err)
		}
	}
	if !freed {
		return nil
	}
	if err := atomicfile.SyncDir(s.dir); err != nil {
		return fmt.Errorf("flushing the freed addresses: %w", err)
	}
	return nil
}

// Rewrite puts the owner of e into its address file, over what is there. The store must be locked.
func (s *Store) Rewrite(e Entry) error {
	if s.lock == nil {
		return errNotLocked
	}
	data, err := json.Marshal(owner{e.ContainerID, e.IfName})
	if err != nil {
		return fmt.Errorf("encoding the owner of %s: %w", e.Addr, err)
	}
	if err := atomicfile.Replace(s.path(e.Addr), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the owner of %s: %w", e.Addr, err)
	}
	return nil
}

// GetByID returns the addresses of one interface of a container.
func (s *Store) GetByID(id, ifname string) []net.IP {
	entries, err := s.Entries()
	if err != nil {
		return nil
	}
	var ips []net.IP
	for _, e := range entries {
		if e.Err == nil && e.ContainerID == id && e.IfName == ifname {
			ips = append(ips, e.Addr.AsSlice())
		}
	}
	return ips
}

// Unreadable lists the addresses in use whose file does not say who has them.
func (s *Store) Unreadable() ([]netip.Addr, error) {
	entries, err := s.Entries()
	var addrs []netip.Addr
	for _, e := range entries {
		if e.Err != nil {
			addrs = append(addrs, e.Addr)
		}
	}
	return addrs, err
}

// Entries lists the network's addresses in use, by address file name.
func (s *Store) Entries() ([]Entry, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("listing the addresses in use: %w", err)
	}
	entries := make([]Entry, 0, len(files))
	for _, f := range files {
		addr, err := netip.ParseAddr(f.Name())
		if err != nil {
			continue // the last.* files, temporary files, and whatever else somebody put here
		}
		o, err := s.read(addr)
		if errors.Is(err, fs.ErrNotExist) {
			continue // freed since the directory was read
		}
		entries = append(entries, Entry{Addr: addr, ContainerID: o.ContainerID, IfName: o.IfName, Err: err})
	}
	return entries, nil
}

// InUse lists every address that this network can't give, as it or another one has it; each once.
func (s *Store) InUse() ([]Entry, error) {
	others, err := s.otherNetworks()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // none was ever given
	}
	if err != nil {
		return nil, err
	}
	entries, err := s.Entries()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	seen := make(map[netip.Addr]bool, len(entries))
	for _, e := range entries {
		seen[e.Addr] = true
	}
	for _, dir := range others {
		files, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("listing the addresses in use: %w", err)
		}
		for _, f := range files {
			if addr, err := netip.ParseAddr(f.Name()); err == nil && !seen[addr] {
				seen[addr] = true
				entries = append(entries, Entry{Addr: addr, Other: true})
			}
		}
	}
	return entries, nil
}

// heldBy says who has an address that is taken.
func (s *Store) heldBy(addr netip.Addr) string {
	for _, dir := range slices.Concat([]string{s.dir}, s.others) {
		switch o, err := readOwner(filepath.Join(dir, addr.String())); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Sprintf("by whom can't be told: %v", err)
		default:
			return fmt.Sprintf("by interface %s of container %s (network %q)", o.IfName, o.ContainerID, filepath.Base(dir))
		}
	}
	return "by somebody who has just left"
}

func (s *Store) read(addr netip.Addr) (owner, error) { return readOwner(s.path(addr)) }

func readOwner(path string) (owner, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return owner{}, err
	}
	var o owner
	if err := json.Unmarshal(data, &o); err != nil {
		return owner{}, fmt.Errorf("%s is not what Warren writes: %w", path, err)
	}
	if o.ContainerID == "" || o.IfName == "" {
		return owner{}, fmt.Errorf("%s names no owner", path)
	}
	return o, nil
}
