package cni

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/internal/nodefile"
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

// spec turns an error into the one object that the runtime reads on standard output. The outermost code wins.
func spec(err error) error {
	if err == nil {
		return nil
	}
	var coded *codedError
	var full *ipam.FullError
	code := types.ErrInternal
	switch {
	case errors.As(err, &coded):
		code = coded.code
	case errors.As(err, &full):
		return types.NewError(types.ErrTryAgainLater, err.Error()+
			": delete pods that are not needed, or give the node a larger pod CIDR", "")
	case errors.Is(err, ipam.ErrBusy), errors.Is(err, errBusy), errors.Is(err, nodefile.ErrMissing):
		code = types.ErrTryAgainLater
	case errors.Is(err, ipam.ErrTaken):
		code = types.ErrInvalidNetworkConfig
	}
	return types.NewError(code, err.Error(), "")
}

// Explain adds what to do to the errors that skel makes before a command of the plugin runs.
func Explain(e *types.Error) *types.Error {
	hint := ""
	switch {
	case e.Details != "" && e.Code != types.ErrIncompatibleCNIVersion:
		return e
	case e.Code == types.ErrIncompatibleCNIVersion:
		hint = "set cniVersion to one of " + strings.Join(Versions().SupportedVersions(), ", ") +
			" (CHECK needs 0.4.0, GC and STATUS need 1.1.0)"
	case e.Code == types.ErrInvalidEnvironmentVariables && strings.Contains(e.Msg, "missing"):
		hint = "a container runtime sets them; to try by hand, use cnitool"
	case e.Code == types.ErrDecodingFailure && strings.Contains(e.Msg, "unmarshall"):
		hint = "the network configuration must come on standard input, as one JSON object"
	case e.Code == types.ErrInvalidNetworkConfig && strings.Contains(e.Msg, "missing network name"):
		hint = "give the network a name in the configuration"
	}
	switch {
	case hint == "":
		return e
	case e.Details != "":
		hint = e.Details + ": " + hint
	}
	return types.NewError(e.Code, e.Msg, hint)
}
