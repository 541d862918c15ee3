// Command warren-cni is Warren's CNI plugin: container runtimes run it once per command, with CNI_* variables in the
// environment and the network configuration on standard input. See package cni.
//
//go:debug containermaxprocs=0
package main

import (
	"os"
	"runtime"
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/warren-net/warren/cni"
)

func main() {
	// The plugin does one thing after the other and ends before there is garbage worth collecting. With one processor
	// its threads don't wake each other for every answer of the kernel's. As it has one anyway, the Go runtime does not
	// look in the list of mounts for the control group's share of processors (go:debug above).
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	plugin := cni.New()
	err := skel.PluginMainFuncsWithError(plugin.Funcs(), cni.Versions(), "Warren CNI plugin: run by a container runtime")
	if err == nil {
		return
	}
	if err := plugin.PrintError(err); err != nil {
		_, _ = os.Stderr.WriteString("warren-cni: writing the error: " + err.Error() + "\n")
	}
	os.Exit(1)
}
