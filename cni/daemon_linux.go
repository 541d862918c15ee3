package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/internal/apisocket"
)

// daemonWait bounds what STATUS waits for the daemon: runtimes ask every few seconds, and wait for the answer.
const daemonWait = 5 * time.Second

// daemonAnswers reports a daemon that holds the device and does not do its work: it begins, hangs, or was stopped. No
// other command asks the daemon, so that pods come and go whatever it does.
func daemonAnswers(runDir string) error {
	socket := filepath.Join(runDir, apisocket.Name)
	if err := askStatus(socket); err != nil {
		return fail(types.ErrPluginNotAvailable, "whether pods reach other nodes can't be told: %w", err)
	}
	return nil
}

// askStatus asks for the node's status as `warren status` does (node/api), and wants a whole answer. HTTP 1.0 is all
// that is needed, and is the end of the connection where the answer ends (RFC 1945, section 1.3).
func askStatus(socket string) error {
	deadline := time.Now().Add(daemonWait)
	c, err := net.DialTimeout("unix", socket, daemonWait)
	if err != nil {
		return apisocket.Explain(socket, err)
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return apisocket.Explain(socket, err)
	}
	const maxAnswer = 16 << 20
	_, err = io.WriteString(c, "GET /v1/status HTTP/1.0\r\n\r\n")
	var answer []byte
	if err == nil {
		answer, err = io.ReadAll(io.LimitReader(c, maxAnswer))
	}
	if err != nil {
		return apisocket.Explain(socket, err)
	}
	head, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	first, _, _ := bytes.Cut(head, []byte("\r\n"))
	version, status, _ := bytes.Cut(first, []byte(" "))
	switch {
	case len(answer) == 0:
		return errors.New("the node daemon hangs up without an answer; its log may say why")
	case !bytes.HasPrefix(version, []byte("HTTP/1.")):
		return fmt.Errorf("%.40q at %s is not the node daemon's answer: another program has its socket; restart "+
			"`warren up`", first, socket)
	case !bytes.HasPrefix(status, []byte("200 ")):
		return fmt.Errorf("the node daemon answers %.100s; its log may say why", status)
	case !json.Valid(body):
		return fmt.Errorf("the answer of the node daemon is not whole (%d bytes); its log may say why", len(answer))
	}
	return nil
}
