package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/warren-net/warren/internal/apisocket"
)

// maxAnswer bounds an answer in bytes; a peer takes some 400.
const maxAnswer = 64 << 20

// clientTimeout bounds a question from the dial to the answer's last byte.
const clientTimeout = 15 * time.Second

// A Client asks one node. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client for the socket at path; nothing is opened before the first question.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{
		Timeout:   clientTimeout,
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}}
}

// Status asks for the node as a whole.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.get(ctx, "status", &s)
}

// Peers asks for the other nodes.
func (c *Client) Peers(ctx context.Context) (p []Peer, err error) { return p, c.get(ctx, "peers", &p) }

// Routes asks for the forwarder's table.
func (c *Client) Routes(ctx context.Context) (r []Route, err error) {
	return r, c.get(ctx, "routes", &r)
}

// Pods asks for the attached pods.
func (c *Client) Pods(ctx context.Context) (p []Pod, err error) { return p, c.get(ctx, "pods", &p) }

// Drops asks for the counts of all drop reasons.
func (c *Client) Drops(ctx context.Context) (d []Drop, err error) { return d, c.get(ctx, "drops", &d) }

func (c *Client) get(ctx context.Context, what string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://warren"+prefix+what, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return apisocket.Explain(c.socket, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return apisocket.Explain(c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e Error
		if json.Unmarshal(body, &e) == nil && e.Message != "" {
			return fmt.Errorf("the node daemon answers: %s", e.Message)
		}
		return fmt.Errorf("the node daemon answers %s", resp.Status)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("answer of the node daemon: %w; is it of another version than this command?", err)
	}
	return nil
}
