package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/warren-net/warren/internal/lab"
)

// devStats are a device's counters.
type devStats struct{ rxBytes, rxPackets, txBytes, txPackets uint64 }

func (a devStats) minus(b devStats) devStats {
	return devStats{a.rxBytes - b.rxBytes, a.rxPackets - b.rxPackets, a.txBytes - b.txBytes, a.txPackets - b.txPackets}
}

// counters are what a system's traffic and work move.
type counters struct {
	devices [2]map[string]devStats // per node, by name
	// busySeconds is the CPU time of the whole machine. A sum over processes and interrupts would count twice what the
	// kernel forwards while a process sends, unless it accounts interrupt time exactly (CONFIG_IRQ_TIME_ACCOUNTING), and
	// leave out its own threads.
	busySeconds float64
}

func (a counters) minus(b counters) counters {
	d := counters{busySeconds: a.busySeconds - b.busySeconds}
	for i := range a.devices {
		d.devices[i] = make(map[string]devStats)
		for name, stats := range a.devices[i] {
			d.devices[i][name] = stats.minus(b.devices[i][name])
		}
	}
	return d
}

// readCounters reads everything once.
func readCounters(b *Bed, p *Path) (c counters, err error) {
	for i, n := range b.Nodes {
		if c.devices[i], err = readDevices(n.NS); err != nil {
			return c, err
		}
		for _, name := range []string{wireDevice, p.Devices[i]} {
			if _, ok := c.devices[i][name]; !ok && name != "" {
				return c, fmt.Errorf("node %s has no device %s", n.Name, name)
			}
		}
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c, fmt.Errorf("CPU time of the machine: %w", err)
	}
	c.busySeconds, err = parseBusy(string(stat))
	return c, err
}

func readDevices(ns *lab.NS) (map[string]devStats, error) {
	var text []byte
	err := ns.Do(func() (err error) {
		// /proc/net is the namespace of the process's first thread; ns.Do runs on another.
		text, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("counters of %s: %w", ns.Name, err)
	}
	return parseDevices(string(text))
}

// parseDevices reads /proc/net/dev: two lines of titles, then name, eight receive counters and eight of transmission.
func parseDevices(text string) (map[string]devStats, error) {
	stats := make(map[string]devStats)
	for _, line := range strings.Split(text, "\n") {
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 16 {
			continue
		}
		var v [4]uint64
		for i, column := range []int{0, 1, 8, 9} {
			var err error
			if v[i], err = strconv.ParseUint(fields[column], 10, 64); err != nil {
				return nil, fmt.Errorf("line %q of /proc/net/dev: %w", line, err)
			}
		}
		stats[strings.TrimSpace(name)] = devStats{v[0], v[1], v[2], v[3]}
	}
	return stats, nil
}

// ticksPerSecond is USER_HZ, which Linux fixes at 100 for user space on every architecture that Go runs on.
const ticksPerSecond = 100

// parseBusy reads the first line of /proc/stat (proc(5)): all columns but those of idle time, of waiting for disks, and
// of what other guests of the same host took.
func parseBusy(stat string) (float64, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q, want the line cpu with 7 columns or more", line)
	}
	const user, nice, system, irq, softirq = 1, 2, 3, 6, 7
	var sum uint64
	for _, column := range []int{user, nice, system, irq, softirq} {
		n, err := strconv.ParseUint(fields[column], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("clock ticks in /proc/stat: %w", err)
		}
		sum += n
	}
	return float64(sum) / ticksPerSecond, nil
}

// residentMiB is the largest resident memory among the processes now, in MiB.
func residentMiB(procs []*lab.Proc) (float64, error) {
	var largest float64
	for _, p := range procs {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
		if err != nil {
			return 0, fmt.Errorf("%s is gone: %w; its log:\n%s", p.Name, err, p.LogTail())
		}
		_, rest, _ := strings.Cut(string(text), "\nVmRSS:")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return 0, fmt.Errorf("no VmRSS in the status of %s", p.Name)
		}
		kib, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return 0, fmt.Errorf("resident memory of %s: %w", p.Name, err)
		}
		largest = max(largest, kib/1024)
	}
	return largest, nil
}
