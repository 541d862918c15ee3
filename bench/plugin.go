package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// A Plugin attaches pods to the first node: a program that speaks CNI.
type Plugin struct {
	Binary string
	Conf   string // the network configuration, JSON; a pod gets one IPv4 address
	State  string // directory of the files that it keeps
}

// podTime is how much of a measurement's time one pod stands for: 100 pods in the 4 s that the scenario has by default.
// mostPods of them fit the node's pod CIDR, beside those that the measurements of traffic have.
const (
	podTime  = 40 * time.Millisecond
	mostPods = 200
)

// cniTimeout bounds one execution of a plugin.
const cniTimeout = time.Minute

// A cniPod is a network namespace that is attached and detached.
type cniPod struct {
	id   string
	ns   *lab.NS
	addr netip.Addr // IPv4
}

// attachPods adds pods one after the other, and then deletes them, each by executing the plugin. Only that is timed,
// to the end of the last process: the namespaces are there before and go after.
func attachPods(ctx context.Context, m measurement) (figures []figure, err error) {
	count := min(int(m.time/podTime), mostPods)
	if count < 1 {
		return nil, fmt.Errorf("%v is no time for a pod: give %v at least", m.time, podTime)
	}
	node, plugin := m.bed.Nodes[0], m.path.Plugin
	pods := make([]cniPod, 0, count)
	defer func() {
		for _, p := range pods {
			err = errors.Join(err, m.bed.Lab.RemoveNS(p.ns))
		}
	}()
	for i := range count {
		ns, err := m.bed.Lab.AddNS(fmt.Sprintf("%s-cni%d", node.Name, i))
		if err != nil {
			return nil, err
		}
		pods = append(pods, cniPod{id: fmt.Sprintf("bench-%d", i), ns: ns})
	}
	// The first pod makes what stays: directories, tables, the place where the round robin goes on.
	if _, err := plugin.all(ctx, node, "ADD", pods[:1]); err != nil {
		return nil, err
	}
	if _, err := plugin.all(ctx, node, "DEL", pods[:1]); err != nil {
		return nil, err
	}
	before, err := plugin.traces(ctx, node)
	if err != nil {
		return nil, err
	}
	added, err := plugin.all(ctx, node, "ADD", pods)
	if err != nil {
		return nil, err
	}
	if err := checkAttached(ctx, node, pods); err != nil {
		return nil, err
	}
	deleted, err := plugin.all(ctx, node, "DEL", pods)
	if err != nil {
		return nil, err
	}
	rest, err := plugin.ended()
	if err != nil {
		return nil, err
	}
	deleted += rest
	if err := plugin.checkGone(ctx, node, before); err != nil {
		return nil, err
	}
	each := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(count) }
	return []figure{{metricCNI, each(added + deleted)}, {metricAdd, each(added)}, {metricDel, each(deleted)}}, nil
}

// all executes the plugin for one pod after the other and returns how long that took.
func (p *Plugin) all(ctx context.Context, n *lab.Node, command string, pods []cniPod) (time.Duration, error) {
	var took time.Duration
	for i := range pods {
		out, spent, err := p.execute(ctx, n, command, pods[i])
		if err != nil {
			return 0, err
		}
		took += spent
		if command == "ADD" {
			if pods[i].addr, err = addressIn(out); err != nil {
				return 0, fmt.Errorf("%s of pod %d: %w: %s", command, i, err, out)
			}
		}
	}
	return took, nil
}

// ended waits for the end of processes that the plugin left behind, and returns how long that took. While one of them
// is there, the next pod's are already at work, so that what they cost is in the time of those.
func (p *Plugin) ended() (time.Duration, error) {
	file, err := filepath.Abs(p.Binary)
	if err == nil {
		file, err = filepath.EvalSymlinks(file)
	}
	if err != nil {
		return 0, err
	}
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		running, err := runs(file)
		switch took := time.Since(begin); {
		case err != nil || !running:
			return took, err
		case took > cniTimeout:
			return took, fmt.Errorf("self-check: a process of %s is still there after %v", p.Binary, took)
		}
	}
}

// runs reports whether a process executes the file.
func runs(file string) (bool, error) {
	processes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(processes, func(exe string) bool {
		program, err := os.Readlink(exe)
		return err == nil && program == file // an error: it has ended meanwhile
	}), nil
}

// execute runs the plugin once as a container runtime does (CNI specification 1.1.0, section 2), and times it from
// before the process is made until its end was seen.
func (p *Plugin) execute(ctx context.Context, n *lab.Node, command string, pod cniPod) (out []byte, took time.Duration,
	err error,
) {
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.Binary)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + filepath.Dir(p.Binary), "CNI_COMMAND=" + command,
		"CNI_CONTAINERID=" + pod.id, "CNI_IFNAME=eth0", "CNI_NETNS=" + pod.ns.Path(),
	}
	cmd.Stdin = strings.NewReader(p.Conf)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = n.NS.Do(func() error {
		begin := time.Now()
		defer func() { took = time.Since(begin) }()
		return cmd.Run()
	})
	if err != nil {
		return nil, 0, fmt.Errorf("CNI %s of %s: %w: %s%s", command, pod.id, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), took, nil
}

// addressIn reads the address from a result. One that is not IPv4, or a second one, would be other work than the other
// plugin's.
func addressIn(result []byte) (netip.Addr, error) {
	var r struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(result, &r); err != nil {
		return netip.Addr{}, fmt.Errorf("result: %w", err)
	}
	if len(r.IPs) != 1 || !r.IPs[0].Address.Addr().Is4() {
		return netip.Addr{}, fmt.Errorf("it gave %v, want one IPv4 address", r.IPs)
	}
	return r.IPs[0].Address.Addr(), nil
}

// checkAttached makes sure that every pod has an address of its own, and that some of them answer.
func checkAttached(ctx context.Context, n *lab.Node, pods []cniPod) error {
	holder := make(map[netip.Addr]string)
	for _, p := range pods {
		if other := holder[p.addr]; other != "" {
			return fmt.Errorf("self-check: %s and %s both have %s", other, p.id, p.addr)
		}
		holder[p.addr] = p.id
	}
	for _, i := range []int{0, len(pods) / 2, len(pods) - 1} {
		if _, err := n.NS.Run(ctx, "ping", "-c", "1", "-W", "2", pods[i].addr.String()); err != nil {
			return fmt.Errorf("self-check: %s does not answer: %w", pods[i].id, err)
		}
	}
	return nil
}

// goneWait is how long what DEL takes away may still be seen: a running daemon looks after the same things.
const goneWait = 3 * time.Second

// checkGone makes sure that nothing is left of the pods.
func (p *Plugin) checkGone(ctx context.Context, n *lab.Node, before []string) error {
	for deadline := time.Now().Add(goneWait); ; time.Sleep(goneWait / 30) {
		after, err := p.traces(ctx, n)
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(after, func(line string) bool { return slices.Contains(before, line) })
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("self-check: after DEL there is still: %s", strings.Join(left, "; "))
		}
	}
}

// traces lists what a pod can leave on the node: devices, routes, neighbours, rules and files.
func (p *Plugin) traces(ctx context.Context, n *lab.Node) ([]string, error) {
	var lines []string
	for _, command := range []string{"ip -br link", "ip route show table all", "ip -6 route show table all",
		"ip neigh show nud permanent", "nft -s list ruleset"} {
		out, err := n.NS.Run(ctx, strings.Fields(command)...)
		if err != nil {
			return nil, err
		}
		lines = append(lines, strings.Split(out, "\n")...)
	}
	err := filepath.WalkDir(p.State, func(path string, _ fs.DirEntry, err error) error {
		lines = append(lines, path)
		return err
	})
	// Of the wire's end the kernel makes a link-local address by itself, some time after it came up.
	return slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "dev "+wireDevice) }), err
}
