package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Level says how bad a Finding is.
type Level string

// The levels.
const (
	OK      Level = "ok"
	Warning Level = "warning" // Warren works, and something does not work or not well
	Error   Level = "error"   // Warren does not work
)

// A Finding is one thing that Check looked at.
type Finding struct {
	Level Level  `json:"level"`
	What  string `json:"what"`           // what was looked at, two or three words
	Why   string `json:"why"`            // what was found, and what follows from it
	Mend  string `json:"mend,omitempty"` // a command or a line of the configuration; empty when all is well
}

// An Environment is what Check looks for.
type Environment struct {
	Spec          Spec   // an MTU of 0 stands for the underlay's less 80
	VXLANPort     uint16 // UDP port of the plaintext tunnel; 0: no node is reached by it
	WireGuardPort uint16 // UDP port of the encrypted tunnel; 0: nobody is reached by it
	TUN           string // path of the TUN device; empty: /dev/net/tun
}

// The bytes that VXLAN adds (inner Ethernet header, VXLAN, UDP and outer IP header; RFC 7348, section 5), and how many
// more WireGuard does (header and authentication tag in place of the first two).
const (
	overheadV4  = 14 + 8 + 8 + 20
	overheadV6  = 14 + 8 + 8 + 40
	encryption  = 16 + 16 - 14 - 8
	podMTULess  = 80 // the default pod MTU is the underlay's less this
	capNetAdmin = 12 // CAP_NET_ADMIN
)

// Check looks at the host, in the calling thread's network namespace, for what would keep Warren from working as Spec
// says. It changes nothing. It works before the first start as well as beside a running daemon.
func Check(env Environment) []Finding {
	env.Spec = env.Spec.withDefaults()
	if env.TUN == "" {
		env.TUN = "/dev/net/tun"
	}
	c := &checker{Environment: env}
	if err := env.Spec.validate(); err != nil {
		c.error("configuration", err.Error(), "correct the configuration")
	}
	c.privileges()
	c.tun()
	h, err := open()
	if err != nil {
		c.error("netlink", err.Error(), "allow AF_NETLINK sockets (systemd: RestrictAddressFamilies=)")
		return c.found
	}
	defer h.Close()
	c.h = h
	c.nftables()
	c.ipv6()
	c.device()
	c.underlay()
	c.ports()
	c.routes()
	c.direct()
	c.rules()
	c.forwarding()
	c.reversePath()
	c.forwardPolicy()
	c.bridgeNetfilter()
	c.conntrack()
	return c.found
}

// A checker collects findings.
type checker struct {
	Environment
	h     *netlink.Handle
	noNft bool
	found []Finding
}

func (c *checker) ok(what, format string, args ...any) {
	c.found = append(c.found, Finding{Level: OK, What: what, Why: fmt.Sprintf(format, args...)})
}

func (c *checker) warn(what, why, mend string) {
	c.found = append(c.found, Finding{Warning, what, why, mend})
}

func (c *checker) error(what, why, mend string) {
	c.found = append(c.found, Finding{Error, what, why, mend})
}

func (c *checker) privileges() {
	const what = "privileges"
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		c.warn(what, "the process's capabilities can't be read: "+err.Error(), "mount /proc")
		return
	}
	caps, err := effective(string(status))
	switch {
	case err != nil:
		c.warn(what, err.Error(), "mount /proc")
	case caps&(1<<capNetAdmin) == 0:
		c.error(what, "CAP_NET_ADMIN is missing: no device, route or rule can be set",
			"run it as root, with AmbientCapabilities=CAP_NET_ADMIN (systemd), or with --cap-add NET_ADMIN (containers)")
	default:
		c.ok(what, "CAP_NET_ADMIN is effective")
	}
}

// effective finds the effective capabilities in the text of /proc/PID/status.
func effective(status string) (uint64, error) {
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, errors.New("/proc/thread-self/status has no line CapEff")
}

func (c *checker) tun() {
	const what = "TUN"
	fd, err := unix.Open(c.TUN, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.error(what, c.TUN+" does not exist",
			fmt.Sprintf("`modprobe tun`; `mkdir -p /dev/net && mknod %s c 10 200`; in a container: --device %s", c.TUN, c.TUN))
		return
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		c.error(what, c.TUN+" is there and the kernel's TUN driver is not", "`modprobe tun`, or a kernel with CONFIG_TUN")
		return
	case err != nil:
		c.error(what, fmt.Sprintf("%s can't be opened: %v", c.TUN, err),
			fmt.Sprintf("run it as root; in a container: --device %s and a device cgroup that allows c 10:200 rwm", c.TUN))
		return
	}
	defer func() { _ = unix.Close(fd) }()
	features, err := unix.IoctlGetUint32(fd, unix.TUNGETFEATURES)
	if err != nil {
		c.error(what, fmt.Sprintf("%s is no TUN device: %v", c.TUN, err), fmt.Sprintf("`mknod %s c 10 200`", c.TUN))
		return
	}
	for flag, lost := range map[uint32]string{
		unix.IFF_MULTI_QUEUE: "several queues: one CPU carries all traffic",
		unix.IFF_VNET_HDR:    "offloads: every packet is read by itself",
	} {
		if features&flag == 0 {
			c.warn(what, "the TUN driver does not know "+lost, "use Linux 3.8 or later")
		}
	}
	c.ok(what, "%s can be opened", c.TUN)
}

func (c *checker) nftables() {
	const what = "nftables"
	fw := newFirewall()
	defer fw.close()
	_, _, err := fw.tables()
	switch {
	case errors.Is(err, ErrNoNftables):
		c.noNft = true
		c.warn(what, fmt.Sprintf("%v: pods' IPv6 sources are unchecked, pods can send from each other's addresses in "+
			"bridge mode, nothing is masqueraded, and kube-proxy's services and host ports fail", err),
			"`modprobe nf_tables`, or a kernel with CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NFT_CT, "+
				"CONFIG_NFT_FIB_INET and CONFIG_NFT_MASQ")
	case errors.Is(err, fs.ErrPermission):
		c.warn(what, "it can't be seen without CAP_NET_ADMIN", "run the check as root")
	case err != nil:
		c.warn(what, err.Error(), "look at `nft list tables`")
	default:
		c.ok(what, "the kernel has nftables")
	}
}

func (c *checker) ipv6() {
	const what = "IPv6"
	if !c.Spec.wants(v6) {
		return
	}
	if !haveIPv6() {
		c.error(what, "the configuration has IPv6 CIDRs and this kernel has no IPv6",
			"boot without ipv6.disable=1, or take the IPv6 CIDRs out of `cluster:` and `podCIDRs:`")
		return
	}
	for _, name := range []string{"all", "default"} {
		if v, _ := sysctl("ipv6/conf/" + name + "/disable_ipv6"); v == "1" {
			key := "net.ipv6.conf." + name + ".disable_ipv6"
			c.warn(what, key+" is 1: Warren turns IPv6 on for its own device and for pods, other interfaces have none",
				"`sysctl -w "+key+"=0`")
			return
		}
	}
	c.ok(what, "IPv6 is on")
}
