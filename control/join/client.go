package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/internal/atomicfile"
	"github.com/warren-net/warren/internal/printable"
)

// DefaultPort is the TCP port on which members let hosts in.
const DefaultPort = "8788"

// ErrFalseServer says that whoever answered is not of the network that the token is for.
var ErrFalseServer = errors.New("it is not a member of the network that the token is for")

// ErrOtherNetwork says that the host is in another network already.
var ErrOtherNetwork = errors.New("this host is in another network already")

// A Host is what a host says of itself when it asks to be let in.
type Host struct {
	Address  string // HOST or HOST:PORT of a member
	Token    *Token
	Node     string
	StateDir string

	Member *MemberAddresses // not nil: it wants to be a member as well
}

// MemberAddresses are where a new member is going to be reached, each IP:PORT.
type MemberAddresses struct{ Client, Peer, Join string }

// Joined is what a host got. Its certificates are in Dir.
type Joined struct {
	Network   string
	Endpoints []string          // HOST:PORT of the members' etcd
	Peers     map[string]string // node name → peer URL of the members, for one that is going to be one
}

// patience bounds the conversation.
const patience = 45 * time.Second

// Join asks to be let in. It can be repeated until the token expires: the host is known by the key that it made. Where
// the network refuses, nothing is left of the try.
func Join(ctx context.Context, h Host) (*Joined, error) {
	if err := CheckName(h.Node); err != nil {
		return nil, err
	}
	if old, err := loadCert(Files(h.StateDir).CA); err == nil && hashOf(old) != h.Token.ca {
		return nil, fmt.Errorf("%w: %s is the authority of %q, and the token is another's: `warren leave` takes this host "+
			"out of it", ErrOtherNetwork, Files(h.StateDir).CA, old.Subject.CommonName)
	}
	_, statErr := os.Stat(Dir(h.StateDir))
	fresh := errors.Is(statErr, os.ErrNotExist)
	got, err := join(ctx, h)
	// Without an answer the network may have let this host in: the key stays, by which it is known the next time.
	var answered *answeredError
	if err != nil && fresh && errors.As(err, &answered) {
		err = errors.Join(err, os.RemoveAll(Dir(h.StateDir)))
	}
	return got, err
}

// An answeredError is one after which it is certain that the network did nothing.
type answeredError struct{ error }

func (e *answeredError) Unwrap() error { return e.error }

func join(ctx context.Context, h Host) (*Joined, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, cs, err := connect(ctx, h)
	if err != nil {
		return nil, &answeredError{err}
	}
	defer conn.Close()

	asked := ask{Version: wireVersion, Node: h.Node}
	csr, err := request(h.StateDir, NodeName, h.Node)
	if err != nil {
		return nil, &answeredError{err}
	}
	asked.Request = string(csr)
	if m := h.Member; m != nil {
		if csr, err = request(h.StateDir, MemberName, h.Node); err != nil {
			return nil, &answeredError{err}
		}
		asked.Member = &seeker{Request: string(csr), Client: m.Client, Peer: m.Peer, Join: m.Join}
	}
	body, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	proof, err := prove(&cs, h.Token, body)
	if err != nil {
		return nil, err
	}
	auth := fmt.Sprintf("%s %s %s", authScheme, h.Token.ID, base64.RawStdEncoding.EncodeToString(proof))
	got, err := post(ctx, conn, call{path: pathJoin, auth: auth, body: body})
	if err != nil {
		return nil, err
	}
	return keep(h, got)
}

// connect opens a TLS connection to a member, as far as the token can tell.
func connect(ctx context.Context, h Host) (net.Conn, tls.ConnectionState, error) {
	address := h.Address
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(address, DefaultPort)
	}
	files := Files(h.StateDir)
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: etcd.ServerName, NextProtos: []string{"http/1.1"},
		InsecureSkipVerify: true, // the authority is known by its hash
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, c := range cs.PeerCertificates {
				if c.IsCA && hashOf(c) == h.Token.ca {
					roots := x509.NewCertPool()
					roots.AddCert(c)
					return etcd.VerifyServer(cs, roots, true)
				}
			}
			return ErrFalseServer
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(files.Cert, files.Key)
			if err != nil {
				return &tls.Certificate{}, nil //nolint:nilerr // a host that joins has none
			}
			return &c, nil
		}}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", address)
	switch {
	case errors.Is(err, ErrFalseServer):
		return nil, tls.ConnectionState{}, fmt.Errorf("whoever answers at %s: %w: nothing was told to it; check the "+
			"address, and that the token is of this network", address, err)
	case err != nil:
		return nil, tls.ConnectionState{}, fmt.Errorf("ask the member at %s: %w; is Warren running there as a member, and "+
			"is the port open?", address, err)
	}
	return conn, conn.(*tls.Conn).ConnectionState(), nil
}

// A call is one question by HTTP.
type call struct {
	path, auth string
	body       []byte
}

// post sends the question on the connection and reads the answer.
func post(ctx context.Context, conn net.Conn, c call) (*answer, error) {
	used := false
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if used {
				return nil, errors.New("the member closed the connection")
			}
			used = true
			return conn, nil
		}}}
	// The connection is encrypted already, so this is no https.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+etcd.ServerName+c.path, bytes.NewReader(c.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.auth != "" {
		req.Header.Set("Authorization", c.auth)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no answer from the member at %s: %w; try again with the same token", conn.RemoteAddr(), err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("half an answer from the member at %s: %w; try again with the same token", conn.RemoteAddr(),
			err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusedBy(conn.RemoteAddr(), resp.Status, body)
	}
	got := &answer{}
	if err := json.Unmarshal(body, got); err != nil || got.Version != wireVersion {
		return nil, fmt.Errorf("the member at %s answers in version %d of the conversation (%w): use the same version of "+
			"Warren", conn.RemoteAddr(), got.Version, errors.Join(err, ErrRefused))
	}
	return got, nil
}

// refusedBy is the error that a refusal stands for.
func refusedBy(from net.Addr, status string, body []byte) error {
	var r refusal
	if json.Unmarshal(body, &r) == nil {
		for _, c := range codes {
			if c.code != r.Code {
				continue
			}
			text := printableText(r.Message)
			err := error(&sentinel{c.err, fmt.Sprintf("the member at %s: %s", from, text)})
			if c.err == ErrUnable { //nolint:errorlint // the sentinel itself
				return err // it may have done a part
			}
			return &answeredError{err}
		}
	}
	return fmt.Errorf("%w by the member at %s: %s", ErrRefused, from, status)
}

// A sentinel is an error whose text has the sentinel's words already.
type sentinel struct {
	is   error
	text string
}

func (e *sentinel) Error() string { return e.text }
func (e *sentinel) Unwrap() error { return e.is }

func printableText(s string) string {
	return printable.Text(s[:min(len(s), 1000)])
}

// keep writes what the host got, the authority last: it says that the host is in the network.
func keep(h Host, got *answer) (*Joined, error) {
	block, _ := pem.Decode([]byte(got.CA))
	if block == nil || !isHash(block.Bytes, h.Token.ca) {
		return nil, fmt.Errorf("%w: the authority in the answer is another one", ErrFalseServer)
	}
	out := &Joined{Network: got.Network, Endpoints: got.Endpoints}
	if len(out.Endpoints) == 0 {
		return nil, errors.New("the network names no member where its etcd is reached: look at `warren control members`")
	}
	files := map[string]string{NodeName + ".crt": got.Certificate}
	if h.Member != nil {
		if got.Member == nil {
			return nil, errors.New("the member let this host in as a node only: use the same version of Warren")
		}
		files[MemberName+".crt"], files[caKeyFile] = got.Member.Certificate, got.Member.CAKey
		out.Peers = got.Member.Peers
	}
	for name, content := range files {
		if err := write(h.StateDir, name, []byte(content)); err != nil {
			return nil, err
		}
	}
	if err := write(h.StateDir, caFile, []byte(got.CA)); err != nil {
		return nil, err
	}
	if _, err := Files(h.StateDir).Config(); err != nil {
		return nil, fmt.Errorf("what the member sent does not fit together: %w", err)
	}
	return out, nil
}

func isHash(der []byte, hash [sha256.Size]byte) bool {
	c, err := x509.ParseCertificate(der)
	return err == nil && hashOf(c) == hash
}

func loadCert(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s is not in PEM form", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// Forget removes the node's certificates and keys, and what it remembers of the network.
func Forget(stateDir string) error { return os.RemoveAll(filepath.Clean(etcd.Dir(stateDir))) }

// ForgetMember removes what only a member has: its certificate, and the authority's key.
func ForgetMember(stateDir string) error {
	var errs []error
	for _, name := range []string{MemberName + ".crt", MemberName + ".key", caKeyFile} {
		errs = append(errs, atomicfile.Remove(filepath.Join(Dir(stateDir), name)))
	}
	return errors.Join(errs...)
}
