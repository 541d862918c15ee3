package cni

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/hostnet"
)

// SourceCheck is what lets a pod send from its own addresses only; *Plugin takes internal/hostnet's.
type SourceCheck struct {
	Ensure func(hostnet.Pod) error
	Remove func(ifname string) error
}

// Plugin is the CNI plugin. Its methods act in the network namespace of the calling process, one command per process.
type Plugin struct {
	Stdout io.Writer // results
	Stderr io.Writer // remarks that are no errors; runtimes log them
	Now    func() time.Time
	Source SourceCheck

	stdin []byte // the configuration, once a command runs
	held  *lock  // of the attachment that it works on; nil: none
}

// New is the plugin as the program runs it.
func New() *Plugin {
	return &Plugin{
		Stdout: os.Stdout, Stderr: os.Stderr, Now: time.Now,
		Source: SourceCheck{Ensure: hostnet.EnsurePod, Remove: hostnet.RemovePod},
	}
}

// Versions are the versions of the CNI specification that the plugin speaks.
func Versions() version.PluginInfo { return version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0") }

// Funcs are the plugin's commands. Their errors are *types.Error, with a code of the specification or one of this
// package, and a message that says what is wrong and what to do.
func (p *Plugin) Funcs() skel.CNIFuncs {
	command := func(run func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) (err error) {
			p.stdin = args.StdinData
			defer func() {
				if r := recover(); r != nil {
					err = spec(fmt.Errorf("internal error: %v: please report it with the configuration that led here", r))
				}
			}()
			return spec(run(args))
		}
	}
	return skel.CNIFuncs{
		Add: command(p.add), Del: command(p.del), Check: command(p.check), GC: command(p.gc), Status: command(p.status),
	}
}

func (p *Plugin) remark(format string, args ...any) {
	_, _ = fmt.Fprintf(p.Stderr, "warren-cni: "+format+"\n", args...)
}

// addressStore opens the addresses of a network.
func addressStore(stateDir, network string) (*ipam.Store, error) {
	return ipam.Open(filepath.Join(stateDir, "cni", "ipam"), network, lockWait)
}

// add attaches a pod.
func (p *Plugin) add(args *skel.CmdArgs) (err error) {
	conf, err := ParseConfig(args.StdinData)
	if err != nil {
		return err
	}
	pod, err := parseArgs(args.Args)
	if err != nil {
		return err
	}
	if err := checkIfName(args.IfName); err != nil {
		return err
	}
	conf.ask(pod)
	n, err := conf.resolve()
	if err != nil {
		return err
	}
	if err := trustState(n.StateDir); err != nil {
		return err
	}
	prev, err := conf.prevResult()
	if err != nil {
		return err
	}
	ns, err := openNetns(args.Netns)
	if err != nil {
		return err
	}
	defer ns.close()

	rec := podrecord.Record{
		ContainerID: args.ContainerID, IfName: args.IfName, Netns: args.Netns, Network: n.Name, Mode: n.Mode,
		HostIfName: podrecord.HostIfName(args.ContainerID, args.IfName), Bridge: n.Bridge, IPAM: n.IPAM,
		PodName: pod.name, PodNamespace: pod.namespace, PodUID: pod.uid, Since: p.Now().UTC().Truncate(time.Second),
	}
	if p.held, err = lockAttachment(n.StateDir, rec.HostIfName); err != nil {
		return err
	}
	defer p.held.release()
	host, err := openHost()
	if err != nil {
		return err
	}
	defer host.Close()
	if err := p.clear(host, n.Config, rec); err != nil {
		return err
	}
	if err := nameFree(ns, args.IfName); err != nil {
		return err
	}

	// From here on everything that is done is found again by the record, and undone on an error.
	a := &attachment{network: n, rec: rec, host: host, pod: ns, source: p.Source, remark: p.remark}
	defer func() {
		if err == nil || !a.recorded {
			return
		}
		conf, rec := n.Config, a.rec
		if a.refused {
			// It is told to forget the pod as well, but what it refuses in ADD, such as its section, it may refuse in every
			// DEL: the pod could never be deleted.
			if err := p.releaseDelegated(conf, rec); err != nil {
				p.remark("%v", err)
			}
			conf.IPAM, rec.IPAM = nil, nil
		}
		if undo := p.detach(host, conf, rec, a.linked); undo != nil {
			err = fmt.Errorf("%w; undoing it failed too, DEL will try again: %w", err, undo)
		}
	}()
	if err := a.attach(); err != nil {
		return err
	}
	return p.print(a.result(prev), conf.CNIVersion)
}

// clear makes sure that the interface is not attached. A record whose interface is gone is what a killed ADD or a
// reboot left, and is removed: some runtimes use a container's id again.
func (p *Plugin) clear(host *hostHandle, conf Config, rec podrecord.Record) error {
	old, err := podrecord.Read(conf.StateDir, rec.HostIfName)
	recorded := !errors.Is(err, fs.ErrNotExist)
	if err != nil {
		old = podrecord.Record{
			ContainerID: rec.ContainerID, IfName: rec.IfName, HostIfName: rec.HostIfName, Network: rec.Network,
		}
	}
	if old.ContainerID != rec.ContainerID || old.IfName != rec.IfName {
		return fail(CodeAttached, "interface %s of container %s would get the host interface %s, which belongs to %s of "+
			"container %s: start the container under another id", rec.IfName, rec.ContainerID, rec.HostIfName, old.IfName,
			old.ContainerID)
	}
	exists, err := host.exists(rec.HostIfName)
	switch {
	case err != nil:
		return err
	case exists && recorded:
		return fail(CodeAttached, "interface %s of container %s is attached to network %q already, with %v since %s: delete "+
			"it first (CNI DEL)", rec.IfName, rec.ContainerID, old.Network, old.Addresses, old.Since.Format(time.RFC3339))
	case exists:
		return fail(CodeAttached, "host interface %s exists without a pod record: delete the attachment of %s of "+
			"container %s "+
			"first (CNI DEL), which removes it", rec.HostIfName, rec.IfName, rec.ContainerID)
	case !recorded:
		return nil
	}
	return p.detach(host, conf, old, true)
}

func (p *Plugin) print(result types.Result, cniVersion string) error {
	converted, err := result.GetAsVersion(cniVersion)
	if err != nil {
		return fmt.Errorf("result for CNI version %s: %w", cniVersion, err)
	}
	if err := converted.PrintTo(p.Stdout); err != nil {
		return fail(types.ErrIOFailure, "writing the result: %w", err)
	}
	return nil
}

// del detaches a pod. It works without the namespace, a second time, and before ADD.
func (p *Plugin) del(args *skel.CmdArgs) error {
	conf, _, err := parseCommon(args.StdinData)
	if err != nil {
		return err
	}
	return p.remove(conf, podrecord.Record{ContainerID: args.ContainerID, IfName: args.IfName, Netns: args.Netns})
}

// remove takes away an attachment and whatever is left of it.
func (p *Plugin) remove(conf Config, rec podrecord.Record) error {
	rec.HostIfName, rec.Network = podrecord.HostIfName(rec.ContainerID, rec.IfName), conf.Name
	host, err := openHost()
	if err != nil {
		return err
	}
	defer host.Close()
	p.held = nil
	if _, err := os.Stat(filepath.Join(conf.StateDir, "cni")); !errors.Is(err, fs.ErrNotExist) {
		if p.held, err = lockToRemove(conf.StateDir, rec.HostIfName, lockWait); err != nil {
			return err
		}
		defer p.held.release()
		if err := p.held.handOn(); err != nil {
			return err
		}
	} // else nothing was ever attached with this state directory, or it is lost: nothing to lock, nothing recorded
	switch old, err := podrecord.Read(conf.StateDir, rec.HostIfName); {
	case err == nil && (old.ContainerID != rec.ContainerID || old.IfName != rec.IfName):
		return nil // the record and the interface are somebody else's (two names on one hash)
	case err == nil:
		rec = old
	case !errors.Is(err, fs.ErrNotExist):
		p.remark("%v; removing what its name tells", err)
	}
	return p.detach(host, conf, rec, true)
}

// detach undoes an attachment, in an order that can be repeated after a kill: what a step needs to know goes after it.
// An address, but for a DHCP lease, is freed only when the interface that has it is shut for good, which is when the
// rest can go too: nothing stops the kernel any more. linked: the host interface is the attachment's own. What can't be
// freed or forgotten, because the state directory can't be changed, keeps nothing else.
func (p *Plugin) detach(host *hostHandle, conf Config, rec podrecord.Record, linked bool) error {
	if rec.DHCP() { // which tells its server so by the interface; in vain when that is gone, and asked again below
		if err := p.releaseDelegated(conf, rec); err != nil {
			p.remark("%v", err)
		}
	}
	if !linked {
		return p.erase(host, conf, rec)
	}
	return p.removeInterface(host, rec.HostIfName, func() error {
		if err := host.forget(rec.Bridge, rec.Addresses); err != nil {
			return err
		}
		return p.erase(host, conf, rec)
	})
}

// removeInterface removes a host interface, and takes it out of the source check. after runs when the interface is shut
// for good.
func (p *Plugin) removeInterface(host *hostHandle, name string, after func() error) (err error) {
	exists, err := host.exists(name)
	if err != nil {
		return err
	}
	if exists {
		aside := removeAside(name, p.held)
		if aside == nil {
			return after()
		}
		defer func() {
			if err == nil {
				p.remark("%s was removed here, which takes a little longer: %v", name, aside)
			}
		}()
	}
	return host.removeVeth(name, func() error {
		if err := p.unlist(name); err != nil {
			return err
		}
		return after()
	})
}

// erase gives back and forgets what an attachment has beside its interface.
func (p *Plugin) erase(host *hostHandle, conf Config, rec podrecord.Record) error {
	kept := stateFailure(conf.StateDir, p.releaseAddresses(host, conf.StateDir, rec))
	if kept != nil && !frozen(kept) {
		return kept
	}
	if err := p.releaseDelegated(conf, rec); err != nil {
		if kept == nil {
			return err
		}
		kept = errors.Join(kept, err)
	}
	if kept == nil {
		kept = stateFailure(conf.StateDir, podrecord.Remove(conf.StateDir, rec.HostIfName))
	}
	switch {
	case frozen(kept):
		kept = fmt.Errorf("%w; the pod's interface is removed, repeat DEL or GC then for its record and addresses", kept)
	case kept != nil:
		return kept
	}
	shared := p.shared(host, conf, kept)
	return errors.Join(kept, shared.releaseBridges(rec), shared.releaseMasquerade())
}

// unlist takes an interface that is shut out of the source check, which lets nothing through but what it lists. Not at
// once with the beginning of the interface's removal: for either the kernel waits until no processor refers to it any
// more (an RCU grace period), and the interface would have to wait for the next one.
func (p *Plugin) unlist(ifname string) error {
	if err := p.Source.Remove(ifname); err != nil {
		return fmt.Errorf("removing %s from the source check: %w", ifname, err)
	}
	return nil
}

// releaseAddresses frees what an attachment has, by its record, or else by looking at every address. A file that does
// not say whose its address is would keep it for ever, as nobody else's DEL frees it.
func (p *Plugin) releaseAddresses(host *hostHandle, stateDir string, rec podrecord.Record) error {
	return withAddresses(stateDir, rec.Network, func(store *ipam.Store) error {
		unreadable, err := store.Release(rec.ContainerID, rec.IfName, rec.Addresses)
		if len(rec.Addresses) == 0 {
			err = store.ReleaseByID(rec.ContainerID, rec.IfName)
			if err == nil {
				unreadable, err = store.Unreadable()
			}
		}
		if len(unreadable) == 0 || err != nil {
			return err
		}
		return p.freeUnreadable(host, store, stateDir, rec, unreadable)
	})
}

// withAddresses runs f with a network's addresses locked; not at all when none was ever given.
func withAddresses(stateDir, network string, f func(*ipam.Store) error) error {
	if len(network) > maxNetworkName {
		return nil // ADD refused it
	}
	store, err := addressStore(stateDir, network)
	if err != nil {
		return err
	}
	if used, err := store.Used(); !used || err != nil {
		return err
	}
	if err := store.Lock(); err != nil {
		return err
	}
	return errors.Join(f(store), store.Unlock())
}
