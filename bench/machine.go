package bench

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// machineKeys are the keys of Report.Machine in the order in which they are shown.
func machineKeys() []string {
	return []string{"kernel", "cpus", "cpu", "go", "iperf3", "underlay MTU", "pod MTU", "UDP payload",
		"congestion control", "rounds", "seconds", "programs"}
}

// machine says what a run was done on and with.
func (r *runner) machine() map[string]string {
	bed := &Bed{MTU: r.MTU}
	m := map[string]string{
		"cpus":               fmt.Sprint(runtime.NumCPU()),
		"go":                 runtime.Version(),
		"underlay MTU":       fmt.Sprint(r.MTU),
		"pod MTU":            fmt.Sprint(bed.PodMTU()),
		"UDP payload":        fmt.Sprintf("%d bytes in udp-1400, 64 in udp-64", bed.UDPPayload()),
		"congestion control": r.CongestionControl + ", of both ends of every connection",
		"rounds":             fmt.Sprint(r.Rounds),
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		m["kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m["cpu"] = cpuModel(string(text))
	}
	if out, err := exec.Command("iperf3", "--version").Output(); err == nil {
		if f := strings.Fields(string(out)); len(f) > 1 {
			m["iperf3"] = f[1]
		}
	}
	var times, programs []string
	for _, s := range r.scenarios {
		times = append(times, fmt.Sprintf("%s %g", s.name, s.time.Seconds()))
	}
	for _, s := range r.Systems {
		if d, ok := s.(Describer); ok {
			programs = append(programs, s.Name()+" "+d.Program())
		}
	}
	m["seconds"], m["programs"] = strings.Join(times, ", "), strings.Join(programs, "; ")
	return m
}

func cpuModel(cpuinfo string) string {
	_, rest, _ := strings.Cut(cpuinfo, "model name")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.Trim(line, " \t:")
}

// chooseCongestionControl is the wanted one, or the machine's default, which is what an application there gets; it
// fails when the kernel does not have it.
func chooseCongestionControl(want string) (string, error) {
	if want == "" {
		text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
		if err != nil {
			return "", fmt.Errorf("the machine's congestion control: %w; choose one with CC", err)
		}
		want = strings.TrimSpace(string(text))
	}
	text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		return "", fmt.Errorf("congestion controls: %w", err)
	}
	if available := strings.Fields(string(text)); !slices.Contains(available, want) {
		return "", fmt.Errorf("no congestion control %q: this kernel has %s; choose one with CC", want,
			strings.Join(available, ", "))
	}
	return want, nil
}
