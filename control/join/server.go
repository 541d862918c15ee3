package join

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/internal/printable"
)

// A Server lets hosts in; each member runs one.
type Server struct {
	o       ServerOptions
	tokens  *Tokens
	limiter *limiter
}

// ServerOptions say what a Server needs. CA and Client are of a member.
type ServerOptions struct {
	CA       *CA
	Client   *etcd.Client
	StateDir string // with the member's certificate
	Log      *slog.Logger

	Now func() time.Time // nil: time.Now; by which tokens expire
}

// NewServer makes a server; Serve runs it.
func NewServer(o ServerOptions) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o, tokens: &Tokens{client: o.Client, now: o.Now}, limiter: newLimiter(o.Now)}
}

// Serve answers on l until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	files := MemberFiles(s.o.StateDir)
	if _, err := tls.LoadX509KeyPair(files.Cert, files.Key); err != nil {
		return fmt.Errorf("the member's certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(s.o.CA.cert)
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathJoin, s.serve(s.join))
	mux.HandleFunc("POST "+pathRenew, s.serve(s.renew))
	mux.HandleFunc("POST "+pathLeave, s.serve(s.leave))
	srv := &http.Server{Handler: mux, ReadTimeout: 20 * time.Second, WriteTimeout: 60 * time.Second,
		IdleTimeout: 20 * time.Second, MaxHeaderBytes: 8 << 10,
		ErrorLog: log.New(io.Discard, "", 0), // of hosts that speak something else
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, ClientCAs: roots, ClientAuth: tls.VerifyClientCertIfGiven,
			NextProtos:             []string{"http/1.1"},
			SessionTicketsDisabled: true,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				c, err := tls.LoadX509KeyPair(files.Cert, files.Key)
				return &c, err
			},
		}}
	stop := context.AfterFunc(ctx, func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if srv.Shutdown(bounded) != nil {
			_ = srv.Close() // its connections end with it
		}
	})
	defer stop()
	err := srv.ServeTLS(limitListener(l), "", "")
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("hosts cannot join here: %w", err)
}

// A question is one request of HTTP.
type question struct {
	from  string // address
	tls   *tls.ConnectionState
	auth  string
	body  []byte
	asked ask
}

// said is an error with the code that the other end knows it by.
func said(err error, text string, args ...any) error {
	return fmt.Errorf("%w: %s", err, fmt.Sprintf(text, args...))
}

func (s *Server) serve(do func(context.Context, *question) (*answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, hr *http.Request) {
		r := &question{tls: hr.TLS, auth: hr.Header.Get("Authorization")}
		r.from, _, _ = net.SplitHostPort(hr.RemoteAddr)
		got, err := s.handle(hr, r, do)
		w.Header().Set("Content-Type", "application/json")
		if err == nil {
			_ = json.NewEncoder(w).Encode(got) // the other end notices what is missing
			return
		}
		out := refusal{Code: "unable", Message: "the member has a problem; its log says which"}
		status := http.StatusServiceUnavailable
		for _, c := range codes {
			if errors.Is(err, c.err) {
				out, status = refusal{c.code, err.Error()}, http.StatusForbidden
				break
			}
		}
		s.o.Log.Warn("a host was not let in", "from", r.from, "node", printable.Name(r.asked.Node), "error", err)
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(out)
	}
}

func (s *Server) handle(hr *http.Request, r *question, do func(context.Context, *question) (*answer, error)) (*answer,
	error) {
	if !s.limiter.allow(r.from, userOf(r.tls) != "") {
		return nil, said(ErrTooMany, "wait a minute, then try again")
	}
	var err error
	if r.body, err = io.ReadAll(io.LimitReader(hr.Body, maxBody)); err != nil {
		return nil, said(ErrRefused, "the request did not arrive: %v", err)
	}
	if err := json.Unmarshal(r.body, &r.asked); err != nil {
		return nil, said(ErrRefused, "the request is not what Warren sends: %v", err)
	}
	if r.asked.Version != wireVersion {
		return nil, said(ErrRefused, "the request has version %d, and this member knows %d: use the same version of Warren",
			r.asked.Version, wireVersion)
	}
	ctx, cancel := context.WithTimeout(hr.Context(), 30*time.Second)
	defer cancel()
	return do(ctx, r)
}

// authenticate finds the token and sees the proof. Before that is right, there is one answer to everything.
func (s *Server) authenticate(ctx context.Context, r *question) (*TokenInfo, error) {
	wrong := said(ErrWrongToken, "make a new one with `warren token new` on a member, and copy all of it")
	parts := strings.Fields(r.auth)
	if len(parts) != 3 || parts[0] != authScheme {
		return nil, wrong
	}
	signature, err := base64.RawStdEncoding.DecodeString(parts[2])
	if err != nil {
		return nil, wrong
	}
	info, _, err := s.tokens.get(ctx, parts[1])
	if errors.Is(err, ErrNoToken) {
		// As long as with a token that is there.
		info = &TokenInfo{PublicKey: make([]byte, ed25519.PublicKeySize)}
	} else if err != nil {
		return nil, fmt.Errorf("token %s: %w", printable.Name(parts[1]), err)
	}
	if !proven(r.tls, info.PublicKey, r.body, signature) || err != nil {
		s.limiter.failed(r.from)
		return nil, wrong
	}
	return info, s.stillGood(info, nil)
}

// stillGood says what became of a token. A host that used it already, use, may ask again until it expires.
func (s *Server) stillGood(info *TokenInfo, use *Use) error {
	switch now := s.o.Now(); info.State(now) {
	case "revoked":
		return said(ErrRevoked, "it is %s: make a new one with `warren token new` on a member", info.ID)
	case "expired":
		return said(ErrExpired, "it is %s, which ended at %s by the member's clock, and that says %s: make a new one with "+
			"`warren token new` on a member", info.ID, info.Expires.UTC().Format(time.RFC3339),
			now.UTC().Format(time.RFC3339))
	case "used":
		if use != nil && !slices.ContainsFunc(info.Used, use.is) {
			names := make([]string, 0, len(info.Used))
			for _, u := range info.Used {
				names = append(names, u.Node)
			}
			return said(ErrUsed, "it is %s, used by %s: make a new one with `warren token new`, or one for several hosts "+
				"with --uses", info.ID, strings.Join(names, ", "))
		}
	}
	return nil
}

// userOf is the user in the certificate that the other end of the connection showed; empty: it showed none.
func userOf(cs *tls.ConnectionState) string {
	if len(cs.VerifiedChains) == 0 {
		return ""
	}
	return cs.VerifiedChains[0][0].Subject.CommonName
}

// renew answers a node whose certificate is near its end.
func (s *Server) renew(ctx context.Context, r *question) (*answer, error) {
	user := userOf(r.tls)
	name, _ := nameIn(user)
	if name == "" {
		return nil, said(ErrRefused, "a certificate is renewed with the one before it: if that has expired, join again with "+
			"a token from `warren token new --replace`")
	}
	there, err := known(ctx, s.o.Client, user)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnable, err)
	}
	if !there {
		return nil, said(ErrRefused, "node %q was removed from the network, or another host took its place: join again", name)
	}
	cert, err := s.o.CA.issue([]byte(r.asked.Request), user)
	if err != nil {
		return nil, said(ErrRefused, "%v", err)
	}
	return &answer{Version: wireVersion, Network: s.o.Client.Network(), CA: string(s.o.CA.PEM()),
		Certificate: string(cert)}, nil
}

// leave takes the node that asks out of the network.
func (s *Server) leave(ctx context.Context, r *question) (*answer, error) {
	user := userOf(r.tls)
	name, as := nameIn(user)
	if name == "" || as != asNode {
		return nil, said(ErrRefused, "a node leaves with its certificate")
	}
	h, _, err := (holders{s.o.Client}).get(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnable, err)
	}
	if h.Node == nil || h.Node.User != user {
		return nil, said(ErrRefused, "node %q was removed from the network already, or another host took its place", name)
	}
	if err := Evict(ctx, s.o.Client, name); errors.Is(err, etcd.ErrAlive) {
		return nil, said(ErrRefused, "%v", err)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnable, err)
	}
	s.o.Log.Info("a node left the network", "node", name, "from", r.from)
	return &answer{Version: wireVersion, Network: s.o.Client.Network()}, nil
}

// Evict takes a node out of the network: its name and CIDRs are given back, and its certificates are worth nothing any
// more. The tokens that it came with let it in no second time, neither by its name nor with its key. The client is a
// member's.
func Evict(ctx context.Context, client *etcd.Client, name string) error {
	err := steady(ctx, func() error { return client.Remove(ctx, name) })
	if err != nil && !errors.Is(err, etcd.ErrNoNode) {
		return err
	}
	_, revision, getErr := (holders{client}).get(ctx, name)
	if getErr != nil {
		return getErr
	}
	if revision == 0 {
		return err
	}
	return out(ctx, client, name)
}

// Expel takes a node out that runs, as one does that fell into wrong hands: its rights go first, so that it cannot say
// any more that it is alive, nor register again. The tokens that it came with are revoked, so that it comes back with
// none of them by another name. The client is a member's.
func Expel(ctx context.Context, client *etcd.Client, name string) error {
	_, revision, err := (holders{client}).get(ctx, name)
	if err != nil {
		return err
	}
	if _, err := NewTokens(client).RevokeOf(ctx, name); err != nil {
		return err
	}
	if revision != 0 {
		return out(ctx, client, name)
	}
	return remove(ctx, client, name)
}

// out takes a host's rights away and then its records, as it may write them until then.
func out(ctx context.Context, client *etcd.Client, name string) error {
	if err := NewTokens(client).leave(ctx, name); err != nil {
		return err
	}
	if err := Withdraw(ctx, client, name); err != nil {
		return err
	}
	h, _, err := (holders{client}).get(ctx, name)
	if err != nil || h.taken() { // whoever took the name meanwhile has its records
		return err
	}
	if err := remove(ctx, client, name); !errors.Is(err, etcd.ErrNoNode) {
		return err
	}
	return nil // it had a name, and is not registered
}

// remove deletes the records of a node, also of one that says it is alive.
func remove(ctx context.Context, client *etcd.Client, name string) error {
	err := steady(ctx, func() error {
		_, err := client.Etcd().Delete(ctx, etcd.Prefix(client.Network())+"alive/"+name)
		return err
	})
	if err != nil {
		return client.Explain(err)
	}
	return steady(ctx, func() error { return client.Remove(ctx, name) })
}
