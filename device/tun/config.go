package tun

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Alias is the interface alias by which Warren recognises its own device.
const Alias = "warren pod network"

// maxName is IFNAMSIZ without the terminating zero.
const maxName = 15

// maxQueues is the kernel's MAX_TAP_QUEUES.
const maxQueues = 256

// Why Open fails, for callers that decide on it. The error's text says what to do.
var (
	ErrNotOurs    = errors.New("device name taken by somebody else")
	ErrNoDevice   = errors.New("no TUN device node")
	ErrPermission = errors.New("not permitted to use TUN devices")
	ErrBusy       = errors.New("device in use by another process")
)

// Mode says whether an offload is used.
type Mode uint8

// The modes of an offload.
const (
	Auto Mode = iota // if the kernel has it and it works
	Off
)

// Config says what device to open. The zero value of every field but Name is usable.
type Config struct {
	Name   string // at most 15 bytes, the kernel's limit
	Queues int    // 1 to 256; 0: 1
	MTU    int    // bytes; 0: as it is (1500 for a new device)
	TSO    Mode   // TCP superpackets; need Checksum
	USO    Mode   // UDP superpackets (Linux 6.2); need Checksum

	Checksum Mode // packets with a checksum that is still to be completed

	GSOMaxSize  int    // bytes of the largest superpacket that the kernel delivers; 0: as it is (65,536)
	QueueLength int    // packets that the kernel keeps for each queue; 0: as it is (500)
	Node        string // path of the TUN device node; empty: /dev/net/tun
}

// withDefaults returns the complete configuration, or what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if err := CheckName(c.Name); err != nil {
		return c, err
	}
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Node == "" {
		c.Node = "/dev/net/tun"
	}
	if c.Queues < 1 || c.Queues > maxQueues {
		return c, fmt.Errorf("%d queues for device %s: a TUN device has 1 to %d", c.Queues, c.Name, maxQueues)
	}
	if c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535) {
		return c, fmt.Errorf("MTU %d for device %s: must be 68 to 65535 bytes", c.MTU, c.Name)
	}
	if c.GSOMaxSize < 0 || c.QueueLength < 0 {
		return c, fmt.Errorf("GSO size %d and queue length %d for device %s: must not be negative", c.GSOMaxSize,
			c.QueueLength, c.Name)
	}
	if c.Checksum > Off || c.TSO > Off || c.USO > Off {
		return c, fmt.Errorf("offload modes %d, %d and %d for device %s: must be auto or off", c.Checksum, c.TSO, c.USO,
			c.Name)
	}
	return c, nil
}

// CheckName says what is wrong with an interface name, by the kernel's rules (dev_valid_name).
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("the device name is empty: give one of 1 to 15 bytes, such as warren0")
	case len(name) > maxName:
		return fmt.Errorf("device name %q has %d bytes: the kernel takes at most %d", name, len(name), maxName)
	case name == "." || name == "..":
		return fmt.Errorf("device name %q: the kernel does not take it", name)
	case strings.ContainsAny(name, "/:%"):
		return fmt.Errorf("device name %q: must not contain '/', ':' or '%%'", name)
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return fmt.Errorf("device name %q: must not contain white space or control characters", name)
	}
	return nil
}
