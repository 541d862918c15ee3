package lab

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

// KernelState is what is configured in a namespace, one line per thing: devices, addresses, rules, routes, nftables.
type KernelState map[string][]string

// stateCommands are the questions of State. Neighbours are left out: they come and go by themselves.
func stateCommands() map[string][]string {
	return map[string][]string{
		"device":     {"ip", "-o", "link", "show"},
		"address":    {"ip", "-o", "addr", "show"},
		"IPv4 rule":  {"ip", "-4", "rule", "show"},
		"IPv6 rule":  {"ip", "-6", "rule", "show"},
		"IPv4 route": {"ip", "-4", "route", "show", "table", "all"},
		"IPv6 route": {"ip", "-6", "route", "show", "table", "all"},
		"nftables":   {"nft", "-nn", "list", "ruleset"},
	}
}

// volatile matches what differs from one look to the next without anybody having changed anything.
var volatile = regexp.MustCompile(
	`valid_lft \S+|preferred_lft \S+|expires \S+|(counter )?packets \d+ bytes \d+|tentative`)

// derived matches the lines of what nobody configures: the kernel makes the routes of its table local from the
// addresses, which are listed themselves, and those of IPv6 a moment later than the address; and with forwarding on it
// adds the subnet-router anycast address (RFC 4291, 2.6.1) of each IPv6 subnet.
var derived = regexp.MustCompile(`^anycast |^(local|broadcast|multicast) .*table local.* proto kernel`)

// State lists what is configured in the namespace.
func (ns *NS) State(ctx context.Context) (KernelState, error) {
	state := make(KernelState)
	for kind, command := range stateCommands() {
		out, err := ns.Run(ctx, command...)
		// ip says so when a table does not exist, which is an empty list to us.
		if err != nil && !strings.Contains(err.Error(), "FIB table does not exist") {
			return nil, err
		}
		for _, line := range strings.Split(out, "\n") {
			line = strings.Join(strings.Fields(volatile.ReplaceAllString(line, "")), " ")
			if line != "" && !derived.MatchString(line) {
				state[kind] = append(state[kind], line)
			}
		}
	}
	return state, nil
}

// Since lists what s has and before has not, and the other way round, each line with its kind.
func (s KernelState) Since(before KernelState) (added, gone []string) {
	return minus(s, before), minus(before, s)
}

func minus(a, b KernelState) []string {
	var lines []string
	for kind, have := range a {
		count := make(map[string]int)
		for _, line := range b[kind] {
			count[line]++
		}
		for _, line := range have {
			if count[line]--; count[line] < 0 {
				lines = append(lines, kind+": "+line)
			}
		}
	}
	sort.Strings(lines)
	return lines
}

// FindAddress lists every place of the node that mentions an address: devices, routes, rules, neighbours, nftables, the
// daemon's `warren pods` and the files of its state directory.
func (n *Node) FindAddress(ctx context.Context, a netip.Addr) ([]string, error) {
	mention := mentions(a)
	commands := stateCommands()
	// Without `nud all`: the NOARP entries that the kernel caches for what was sent to a TUN device map nothing.
	commands["IPv4 neighbour"] = []string{"ip", "-4", "neigh", "show"}
	commands["IPv6 neighbour"] = []string{"ip", "-6", "neigh", "show"}
	commands["proxy neighbour"] = []string{"ip", "neigh", "show", "proxy"}
	var found []string
	for kind, command := range commands {
		out, err := n.NS.Run(ctx, command...)
		if err != nil && !strings.Contains(err.Error(), "FIB table does not exist") {
			return nil, err
		}
		found = append(found, linesWith(kind, out, mention)...)
	}
	for _, command := range []string{"pods", "routes"} {
		out, err := n.Warren(ctx, command, "-o", "json")
		if err != nil {
			return nil, err
		}
		found = append(found, linesWith("warren "+command, out, mention)...)
	}
	files, err := filesWith(n.StateDir, mention)
	sort.Strings(found)
	return append(found, files...), err
}

// mentions matches the address where it is not a part of a longer one.
func mentions(a netip.Addr) *regexp.Regexp {
	return regexp.MustCompile(`(^|[^0-9a-f.:])` + regexp.QuoteMeta(a.String()) + `($|[^0-9a-f.:])`)
}

func linesWith(kind, text string, mention *regexp.Regexp) []string {
	var found []string
	for _, line := range strings.Split(text, "\n") {
		if mention.MatchString(line) {
			found = append(found, kind+": "+strings.Join(strings.Fields(line), " "))
		}
	}
	return found
}

// filesWith lists the files whose name or content mentions the address.
func filesWith(dir string, mention *regexp.Regexp) ([]string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		// host-local's names replace the colons of an IPv6 address where a file system does not take them.
		name := strings.ReplaceAll(d.Name(), "_", ":")
		// The store remembers the last address that it gave out, to give the next pod another: that holds nothing.
		if strings.HasPrefix(d.Name(), "last.") {
			return nil
		}
		if mention.MatchString(name) || mention.Match(content) {
			found = append(found, "file: "+path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("searching %s: %w", dir, err)
	}
	return found, nil
}

// Mentions reports whether a text names an address, not only a longer one that contains it.
func Mentions(text string, a netip.Addr) bool { return mentions(a).MatchString(text) }
