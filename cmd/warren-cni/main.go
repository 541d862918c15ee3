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
	debug.SetGCPercent(-1) // nothing here lives until there is garbage worth collecting
	if cni.IsRemover(os.Args) {
		runtime.GOMAXPROCS(2) // one hears of the interface's end while the other waits for it
		if err := cni.RunRemover(os.Args, os.Stdout); err != nil {
			fail("removing " + os.Args[2] + ": " + err.Error())
		}
		return
	}
	// The plugin does one thing after the other. With one processor its threads don't wake each other for every answer
	// of the kernel's. As it has one anyway, the Go runtime does not look in the list of mounts for the control group's
	// share of processors (go:debug above).
	runtime.GOMAXPROCS(1)
	if os.Getenv("CNI_COMMAND") == "DEL" {
		// A DEL has to work whatever has become of CNI_NETNS: /proc/PID/ns/net may be the host's own by now. Without this
		// (CNI specification 1.1.0, section 2) it would fail each time, when all is done.
		_ = os.Setenv("CNI_NETNS_OVERRIDE", "1")
	}
	plugin := cni.New()
	err := skel.PluginMainFuncsWithError(plugin.Funcs(), cni.Versions(), "Warren CNI plugin: run by a container runtime")
	if err == nil {
		return
	}
	if err := plugin.PrintError(err); err != nil {
		fail("writing the error: " + err.Error())
	}
	os.Exit(1)
}

func fail(why string) {
	_, _ = os.Stderr.WriteString("warren-cni: " + why + "\n")
	os.Exit(1)
}
