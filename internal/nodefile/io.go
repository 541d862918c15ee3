package nodefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/warren-net/warren/internal/atomicfile"
)

// ErrMissing is the sentinel for a file that is not there: no daemon has run since the run directory was made.
var ErrMissing = errors.New("the node daemon has not run yet")

// Write puts f into the directory dir, which it creates when it is missing. Readers see the old file or the new one,
// never a half one. One process at a time may write.
func Write(dir string, f File) error {
	if err := f.validate(); err != nil {
		return fmt.Errorf("node file for %s: %w", dir, err)
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the node file: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the run directory: %w", err)
	}
	path := filepath.Join(dir, Name)
	if err := atomicfile.Replace(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// Read reads the file of the directory dir. Its error says what to do; it wraps ErrMissing when there is no file.
func Read(dir string) (File, error) {
	path := filepath.Join(dir, Name)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return File{}, fmt.Errorf("%s does not exist: %w, or somebody removed its run directory: start or restart"+
			" `warren up`, or put podCIDRs into the CNI configuration (runDir there must be the daemon's)", path, ErrMissing)
	case err != nil:
		return File{}, fmt.Errorf("reading the node file: %w", err)
	case len(bytes.TrimSpace(data)) == 0:
		return File{}, fmt.Errorf("%s is empty: restart `warren up`, which writes it anew", path)
	}
	var f File
	if err := json.Unmarshal(data, &f); err != nil {
		return File{}, fmt.Errorf("%s is not what the daemon writes (%w): restart `warren up`, which writes it anew", path,
			err)
	}
	if err := f.validate(); err != nil {
		return File{}, fmt.Errorf("%s: %w: restart `warren up`, which writes it anew", path, err)
	}
	return f, nil
}

// validate refuses what would make a pod with a wrong address or an unreachable gateway.
func (f File) validate() error {
	if len(f.PodCIDRs) == 0 {
		return errors.New("podCIDRs is empty, so there is no address for a pod")
	}
	if len(f.Gateways) != len(f.PodCIDRs) {
		return fmt.Errorf("%d gateways for %d podCIDRs; there must be one for each", len(f.Gateways), len(f.PodCIDRs))
	}
	for i, cidr := range f.PodCIDRs {
		if !cidr.IsValid() || cidr != cidr.Masked() || cidr.Addr() != cidr.Addr().Unmap() {
			return fmt.Errorf("podCIDRs holds %s, which is not a network's address with its prefix length", cidr)
		}
		if !cidr.Contains(f.Gateways[i]) {
			return fmt.Errorf("gateway %s is not inside its pod CIDR %s", f.Gateways[i], cidr)
		}
	}
	if f.MTU < 68 || f.MTU > 65535 {
		return fmt.Errorf("mtu is %d; it must be between 68 (RFC 791) and 65535", f.MTU)
	}
	return nil
}

// Gateway returns the gateway of the pod CIDR that contains prefix; false when there is none.
func (f File) Gateway(prefix netip.Prefix) (netip.Addr, bool) {
	for i, cidr := range f.PodCIDRs {
		if cidr.Bits() <= prefix.Bits() && cidr.Contains(prefix.Addr()) && i < len(f.Gateways) {
			return f.Gateways[i], true
		}
	}
	return netip.Addr{}, false
}
