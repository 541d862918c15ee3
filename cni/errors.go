package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/internal/nodefile"
	"golang.org/x/sys/unix"
)

// Error codes of this plugin; the specification leaves those from 100 on to plugins.
const (
	CodeAttached      uint = 100 // the interface of this container is attached already
	CodeInterfaceName uint = 101 // an interface of that name exists
	CodeChanged       uint = 102 // CHECK found something that is not as ADD left it
	CodeState         uint = 103 // the state directory is none, or others can write to it
)

// codedError is an error with the code that the runtime is to see.
type codedError struct {
	code uint
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// fail makes an error with a code; the arguments are those of fmt.Errorf.
func fail(code uint, format string, args ...any) error {
	return &codedError{code, fmt.Errorf(format, args...)}
}

// spec turns an error into the one object that the runtime reads on standard output.
func spec(err error) error {
	if err == nil {
		return nil
	}
	code, hint := classify(err)
	return types.NewError(code, err.Error(), hint)
}

// classify finds the code of an error, the outermost one where it has several, and what to do where its text does not
// say that.
func classify(err error) (code uint, hint string) {
	var coded *codedError
	switch {
	case errors.As(err, &coded) && coded.code == types.ErrIOFailure:
		_, hint = system(err)
		return coded.code, hint
	case errors.As(err, &coded) && coded.code == types.ErrInternal:
		return coded.code, unforeseen
	case errors.As(err, &coded):
		return coded.code, ""
	case errors.Is(err, ipam.ErrBusy), errors.Is(err, errBusy):
		return types.ErrTryAgainLater, "try again; if the other process hangs, end it"
	case errors.Is(err, nodefile.ErrMissing):
		return types.ErrTryAgainLater, ""
	case errors.Is(err, ipam.ErrTaken):
		return types.ErrInvalidNetworkConfig, "ask for another address, or delete the pod that has this one"
	case errors.Is(err, ipam.ErrUnserved):
		return types.ErrInvalidNetworkConfig, "ask for an address of these ranges, or give the network one that holds it"
	case errors.Is(err, ipam.ErrSameRanges):
		return types.ErrInvalidNetworkConfig, "ask for one of them, or give the network another set of ranges"
	}
	return system(err)
}

// unforeseen is what to do about an error that says itself no more than what went wrong.
const unforeseen = "unless this says what to do: try again, and report it if it stays"

// system is about errors of the kernel's.
func system(err error) (code uint, hint string) {
	is := func(numbers ...unix.Errno) bool {
		return slices.ContainsFunc(numbers, func(n unix.Errno) bool { return errors.Is(err, n) })
	}
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case is(unix.ENOSPC, unix.EDQUOT):
		return types.ErrIOFailure, "the file system is full: make room on it, or set stateDir to a directory on another"
	case is(unix.EROFS):
		return types.ErrIOFailure, "it can only be read: mount it writable; the state can be moved with stateDir"
	case is(unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS):
		return types.ErrTryAgainLater, "the node is short of memory or open files: try again when it has more"
	case errors.As(err, &path), errors.As(err, &link), is(unix.EIO, unix.ENOLCK, unix.ESTALE):
		if errors.Is(err, fs.ErrPermission) {
			return types.ErrIOFailure, "the plugin has to run as root, and no security module may keep it from there"
		}
		return types.ErrIOFailure, "see what is there, and whether its file system is well (dmesg); then try again"
	case is(unix.EPERM, unix.EACCES):
		return types.ErrInternal, "the plugin has to run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"
	case is(unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT):
		return types.ErrInternal, "this kernel lacks what is needed: `warren check` says what"
	}
	return types.ErrInternal, unforeseen
}

// PrintError prints the error that a command, or skel before it, ended with, as the specification has it: with what
// to do, and with the version of the configuration. Where it came to none, that is the newest version spoken.
func (p *Plugin) PrintError(e *types.Error) error {
	spoken := Versions().SupportedVersions()
	var conf struct {
		CNIVersion string `json:"cniVersion"`
	}
	if json.Unmarshal(p.stdin, &conf) != nil || !slices.Contains(spoken, conf.CNIVersion) {
		conf.CNIVersion = spoken[len(spoken)-1]
	}
	data, err := json.MarshalIndent(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{conf.CNIVersion, Explain(e)}, "", "    ")
	if err != nil {
		return err
	}
	_, err = p.Stdout.Write(append(data, '\n'))
	return err
}

// Explain adds what to do to the errors that skel makes before a command of the plugin runs, or after.
func Explain(e *types.Error) *types.Error {
	hint := ""
	for _, known := range []struct{ begin, hint string }{
		{"required env variables", "a container runtime sets them; to try by hand, use cnitool"},
		{"unknown CNI_COMMAND", "it is one of ADD, DEL, CHECK, GC, STATUS and VERSION"},
		{"invalid characters in containerID", "CNI_CONTAINERID must begin with a letter or digit, and have nothing but " +
			"letters, digits, and the signs _ . -"},
		{"interface name ", fmt.Sprintf("CNI_IFNAME is %.60q: it must have 1 to 15 bytes, no white space, / or :, and be "+
			"neither . nor ..", os.Getenv("CNI_IFNAME"))},
		{"error reading from stdin", "the network configuration must come on standard input, whole"},
		{"error unmarshall network config", "the network configuration must come on standard input, as one JSON object"},
		{"decoding", "cniVersion must be a string, as \"1.1.0\" is"},
		{"failed to convert ", "cniVersion must be three numbers, as \"1.1.0\" is"},
		{"invalid version ", "cniVersion must be three numbers, as \"1.1.0\" is"},
		{"missing network name", "give the network a name in the configuration"},
		{"invalid characters found in network name", "name must begin with a letter or digit, and have nothing but " +
			"letters, digits, and the signs _ . -"},
		{"plugin's netns", "CNI_NETNS must be the pod's network namespace; a pod of the host's own gets no CNI call"},
	} {
		if strings.HasPrefix(e.Msg, known.begin) {
			hint = known.hint
		}
	}
	if e.Code == types.ErrIncompatibleCNIVersion {
		hint = versionsFor(os.Getenv("CNI_COMMAND"))
	}
	switch {
	case hint == "":
		return e
	case e.Details != "":
		hint = e.Details + ": " + hint
	}
	return types.NewError(e.Code, e.Msg, hint)
}

// versionsFor says with which versions of the specification there is a command.
func versionsFor(command string) string {
	spoken := Versions().SupportedVersions() // in order
	first, known := map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}[command]
	if !known {
		return "set cniVersion to one of " + strings.Join(spoken, ", ")
	}
	fit := strings.Join(spoken[slices.Index(spoken, first):], ", ")
	if fit != first {
		fit = "one of " + fit
	}
	return fmt.Sprintf("there is %s from %s on: set cniVersion to %s", command, first, fit)
}
