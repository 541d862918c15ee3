package cli

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/warren-net/warren/internal/printable"
	"github.com/warren-net/warren/node/api"
)

// table writes aligned columns; the first row is the heading. Errors of w surface in the one at the end.
func table(w io.Writer, rows ...[]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		// A tabwriter's Fprintln fails only as its Flush does.
		_, _ = fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

func statusTable(w io.Writer, s api.Status) error {
	up := time.Duration(s.UptimeSeconds * float64(time.Second)).Round(time.Second)
	rows := [][]string{
		{"node", fmt.Sprintf("%s (%s, pid %d, up %s)", s.Node, s.Version, s.PID, up)},
		{"config", s.Config},
		{"device", fmt.Sprintf("%s, %s, MTU %d", s.Device.Name, count(s.Device.Queues, "queue"), s.Device.MTU)},
		{"encapsulation", s.Tunnel.Encapsulation},
		{"vxlan", fmt.Sprintf("VNI %d, UDP port %d, VTEP %s", s.Tunnel.VNI, s.Tunnel.Port, s.Tunnel.MAC)},
		{"wireguard", wireguardText(&s.Tunnel)},
	}
	for _, u := range s.Tunnel.Underlay {
		where := "on no device"
		if u.Device != "" {
			where = fmt.Sprintf("on %s, MTU %d", u.Device, u.MTU)
		}
		rows = append(rows, []string{"underlay", u.Address.String() + " " + where})
	}
	for i, c := range s.PodCIDRs {
		text := c.String()
		if i < len(s.Gateways) {
			text += ", gateway " + s.Gateways[i].String()
		}
		rows = append(rows, []string{"pods", text})
	}
	rows = append(rows, []string{"cluster", joined(s.ClusterCIDRs)},
		[]string{"snapshot", fmt.Sprintf("generation %d, %s, %s, since %s", s.Snapshot.Generation,
			count(s.Snapshot.Peers, "peer"), count(s.Snapshot.Routes, "route"), s.Snapshot.Since.Format(time.RFC3339))},
		[]string{"control", controlText(&s.Control)}, []string{"reload", reloadText(s.LastReload)})
	for _, warning := range s.Warnings {
		rows = append(rows, []string{"warning", warning})
	}
	if err := table(w, rows...); err != nil {
		return err
	}
	rows = [][]string{{"\nOFFLOAD", "STATE", "WHY"}}
	for _, o := range s.Offloads {
		rows = append(rows, []string{o.Name, onOff(o.Enabled), dash(o.Reason)})
	}
	if err := table(w, rows...); err != nil {
		return err
	}
	return workersTable(w, s.Workers)
}

func wireguardText(t *api.Tunnel) string {
	if len(t.PublicKeys) == 0 {
		return "none until a restart, see the log"
	}
	text := fmt.Sprintf("UDP port %d, public key %s", t.WireGuardPort, t.PublicKeys[0])
	if len(t.PublicKeys) > 1 {
		text += ", before " + strings.Join(t.PublicKeys[1:], ", ")
	}
	return text
}

func workersTable(w io.Writer, workers []api.Worker) error {
	rows := [][]string{{"\nWORKER", "TX SUPERPACKETS", "TX SEGMENTS", "TX BYTES", "RX SUPERPACKETS", "RX SEGMENTS",
		"RX BYTES", "LOCAL", "OUTSIDE", "WAKE-UPS", "DROPS"}}
	for _, k := range workers {
		row := []string{fmt.Sprint(k.ID)}
		for _, v := range []uint64{k.TxSuperpackets, k.TxSegments, k.TxBytes, k.RxSuperpackets, k.RxSegments, k.RxBytes,
			k.LocalPackets, k.OutsidePackets, k.Wakeups, k.Drops} {
			row = append(row, fmt.Sprint(v))
		}
		rows = append(rows, row)
	}
	return table(w, rows...)
}

func controlText(c *api.Control) string {
	if c.Problem != "" {
		return c.Source + ", which says nothing now (see warnings)"
	}
	return c.Source
}

func reloadText(r *api.Reload) string {
	switch {
	case r == nil:
		return "none since the start"
	case r.Error != "":
		return fmt.Sprintf("failed at %s, the old state stays in force: %s", r.Time.Format(time.RFC3339), r.Error)
	}
	text := "applied at " + r.Time.Format(time.RFC3339)
	if r.Incomplete != "" {
		text += ", but not in full: " + r.Incomplete
	}
	if len(r.NeedsRestart) > 0 {
		text += ", needs a restart for: " + strings.Join(r.NeedsRestart, "; ")
	}
	return text
}

func peersTable(w io.Writer, peers []api.Peer) error {
	rows := [][]string{{"NAME", "ENCAPSULATION", "ENDPOINT", "POD CIDRS", "MTU", "TX PACKETS", "TX BYTES", "RX PACKETS",
		"RX BYTES", "LAST SEEN", "LAST HANDSHAKE"}}
	for _, p := range peers {
		endpoint, handshake := "unknown", ago(p.LastHandshake)
		if p.Endpoint.IsValid() {
			endpoint = p.Endpoint.String()
		}
		if p.PublicKey == "" {
			handshake = "-"
		}
		if p.Encapsulation == "direct" && len(p.Direct) > 0 {
			endpoint = hopText(p.Direct[0].NextHop, p.Direct[0].Device)
		}
		rows = append(rows, []string{p.Name, p.Encapsulation, endpoint, joined(p.PodCIDRs), fmt.Sprint(p.MTU),
			fmt.Sprint(p.TxPackets), fmt.Sprint(p.TxBytes), fmt.Sprint(p.RxPackets), fmt.Sprint(p.RxBytes),
			ago(p.LastSeen), handshake})
	}
	return table(w, rows...)
}

// ago is how long something is past.
func ago(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return time.Since(*t).Round(time.Second).String() + " ago"
}

func routesTable(w io.Writer, routes []api.Route) error {
	rows := [][]string{{"PREFIX", "KIND", "PEER", "DIRECT"}}
	for _, r := range routes {
		hop := ""
		if r.NextHop.IsValid() {
			hop = hopText(r.NextHop, r.Device)
		}
		rows = append(rows, []string{r.Prefix.String(), r.Kind, dash(r.Peer), dash(hop)})
	}
	return table(w, rows...)
}

// hopText is a next hop as ip(8) writes it.
func hopText(via netip.Addr, device string) string { return "via " + via.String() + " dev " + device }

func podsTable(w io.Writer, pods []api.Pod) error {
	rows := [][]string{{"POD", "CONTAINER", "INTERFACE", "HOST INTERFACE", "MODE", "ADDRESSES", "SINCE", "TX BYTES",
		"RX BYTES"}}
	var problems []string
	for _, p := range pods {
		name := dash(p.Name)
		if p.Namespace != "" {
			name = p.Namespace + "/" + name
		}
		since := "-"
		if !p.Since.IsZero() {
			since = p.Since.Format(time.RFC3339)
		}
		rows = append(rows, []string{printable.Text(name), dash(short(p.ContainerID)), dash(p.Interface), p.HostInterface,
			dash(p.Mode), joined(p.Addresses), since, fmt.Sprint(p.TxBytes), fmt.Sprint(p.RxBytes)})
		if p.Problem != "" {
			problems = append(problems, p.HostInterface+": "+printable.Text(p.Problem))
		}
	}
	if err := table(w, rows...); err != nil {
		return err
	}
	for i, problem := range problems {
		text := "problem  " + problem + "\n"
		if i == 0 {
			text = "\n" + text
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	return nil
}

func dropsTable(w io.Writer, drops []api.Drop) error {
	rows := [][]string{{"REASON", "COUNT", "MEANING"}}
	for _, d := range drops {
		rows = append(rows, []string{d.Reason, fmt.Sprint(d.Count), d.Meaning})
	}
	return table(w, rows...)
}

// count is "1 peer" or "2 peers".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func joined[T fmt.Stringer](list []T) string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		out = append(out, v.String())
	}
	return dash(strings.Join(out, ","))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// short cuts a container's id to what runtimes show.
func short(id string) string { return id[:min(len(id), 12)] }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
