package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Init makes the node the first one of a network with an embedded etcd, by `warren init`. Its daemon does not run yet.
func (n *Node) Init(ctx context.Context, flags ...string) error {
	return n.enter(ctx, append([]string{"init", "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48"}, flags...))
}

// Join takes the node into the network of a member whose daemon runs, by `warren join` with a new token.
func (n *Node) Join(ctx context.Context, member *Node, flags ...string) error {
	out, err := member.Warren(ctx, "token", "new")
	if err != nil {
		return err
	}
	// What it prints is what one types on the other host.
	words := strings.Fields(out)
	if len(words) < 2 || words[0] != "warren" || words[1] != "join" {
		return fmt.Errorf("`warren token new` printed %q, not a command to join with", out)
	}
	return n.enter(ctx, append(words[1:], flags...))
}

// enter runs one of both, and adds the node's settings to the configuration that it wrote.
func (n *Node) enter(ctx context.Context, args []string) error {
	// Settings of an earlier try are not what the command takes the file for.
	if err := os.Remove(n.ConfigFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	args = append(args, "--no-start", "--node", n.Name, "--state-dir", n.StateDir, "--run-dir", n.RunDir,
		"--address", n.V4.String(), "--address", n.V6.String())
	if _, err := n.Warren(ctx, args...); err != nil {
		return err
	}
	var err error
	if n.entered, err = os.ReadFile(n.ConfigFile); err != nil {
		return err
	}
	return n.writeEntered()
}

// writeEntered writes the configuration of a node that Init or Join wrote one for.
func (n *Node) writeEntered() error {
	settings := n.Settings
	encapsulation := settings.Encapsulation
	settings.Encapsulation = "" // the network's
	added, err := yaml.Marshal(settings)
	if err != nil {
		return fmt.Errorf("configuration of node %s: %w", n.Name, err)
	}
	if settings.empty() {
		added = nil // an empty map would be a second document
	}
	file := string(n.entered)
	if encapsulation != "" {
		file = strings.Replace(file, "\nencapsulation: wireguard\n", "\nencapsulation: "+encapsulation+"\n", 1)
	}
	return replaceFile(n.ConfigFile, append([]byte(file), added...))
}

// learn reads from the daemon which pod CIDRs the network gave the node.
func (n *Node) learn(ctx context.Context) error {
	out, err := n.Warren(ctx, "status", "-o", "json")
	if err != nil {
		return err
	}
	var status struct {
		PodCIDRs []netip.Prefix `json:"podCIDRs"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return fmt.Errorf("status of node %s: %w", n.Name, err)
	}
	n.PodCIDRs = status.PodCIDRs
	return nil
}
