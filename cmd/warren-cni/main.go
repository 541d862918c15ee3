// Command warren-cni is Warren's CNI plugin: container runtimes run it once per command, with CNI_* variables in the
// environment and the network configuration on standard input. See package cni.
package main

import (
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/warren-net/warren/cni"
)

func main() {
	plugin := cni.New()
	err := skel.PluginMainFuncsWithError(plugin.Funcs(), cni.Versions(), "Warren CNI plugin: run by a container runtime")
	if err == nil {
		return
	}
	if err := cni.Explain(err).Print(); err != nil {
		_, _ = os.Stderr.WriteString("warren-cni: writing the error: " + err.Error() + "\n")
	}
	os.Exit(1)
}
