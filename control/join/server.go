package join

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
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

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/warren-net/warren/control/etcd"
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
		s.o.Log.Warn("a host was not let in", "from", r.from, "node", printable(r.asked.Node), "error", err)
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(out)
	}
}

func (s *Server) handle(hr *http.Request, r *question, do func(context.Context, *question) (*answer, error)) (*answer,
	error) {
	if !s.limiter.allow(r.from) {
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

// join answers a host that has a token.
func (s *Server) join(ctx context.Context, r *question) (*answer, error) {
	info, err := s.authenticate(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := CheckName(r.asked.Node); err != nil {
		return nil, said(ErrRefused, "%v", err)
	}
	csr, err := parseRequest([]byte(r.asked.Request))
	if err != nil {
		return nil, said(ErrRefused, "%v", err)
	}
	key := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	use := Use{Node: r.asked.Node, Key: key[:]}
	again := slices.ContainsFunc(info.Used, use.is)
	if r.asked.Member != nil && !info.Member {
		return nil, said(ErrNotAllowed, "it lets in nodes, and no members: make one with `warren token new --member`")
	}
	if !again {
		if err := s.nameFree(ctx, r, info); err != nil {
			return nil, err
		}
	}
	if err := s.use(ctx, info.ID, use); err != nil {
		return nil, err
	}
	return s.admit(ctx, r)
}

// is reports whether both are of one host that is in the network, as far as the token knows.
func (u Use) is(o Use) bool {
	return u.Node == o.Node && slices.Equal(u.Key, o.Key) && !u.Left && !o.Left
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
		return nil, fmt.Errorf("token %s: %w", printable(parts[1]), err)
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
		return said(ErrRevoked, "make a new one with `warren token new` on a member")
	case "expired":
		return said(ErrExpired, "at %s by the member's clock, which says %s: make a new one with `warren token new` on a "+
			"member", info.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case "used":
		if use != nil && !slices.ContainsFunc(info.Used, use.is) {
			names := make([]string, 0, len(info.Used))
			for _, u := range info.Used {
				names = append(names, u.Node)
			}
			return said(ErrUsed, "by %s: make a new one with `warren token new`, or one for several hosts with --uses",
				strings.Join(names, ", "))
		}
	}
	return nil
}

// nameFree refuses a name that another host has, unless the token says that it may be replaced.
func (s *Server) nameFree(ctx context.Context, r *question, info *TokenInfo) error {
	taken, err := known(ctx, s.o.Client, r.asked.Node)
	if err != nil || !taken || info.Replace {
		return err
	}
	// A node that becomes a member shows its certificate.
	if name, _ := nameOf(r.tls); name == r.asked.Node && r.asked.Member != nil {
		return nil
	}
	return said(ErrNameTaken, "another host joined as %q: choose another name with --node; or, if this host takes its "+
		"place, use a token that says so, from `warren token new --replace`", r.asked.Node)
}

// use counts the use of the token, once for each host.
func (s *Server) use(ctx context.Context, id string, use Use) error {
	return s.tokens.change(ctx, id, func(i *TokenInfo) error {
		if err := s.stillGood(i, &use); err != nil {
			return err
		}
		if !slices.ContainsFunc(i.Used, use.is) {
			i.Used = append(i.Used, use)
		}
		return nil
	})
}

// admit gives the host what it needs, and its rights.
func (s *Server) admit(ctx context.Context, r *question) (*answer, error) {
	out := &answer{Version: wireVersion, Network: s.o.Client.Network(), CA: string(s.o.CA.PEM())}
	cert, err := s.o.CA.issue([]byte(r.asked.Request), r.asked.Node, asNode)
	if err != nil {
		return nil, said(ErrRefused, "%v", err)
	}
	out.Certificate = string(cert)
	if err := Grant(ctx, s.o.Client, r.asked.Node); err != nil {
		return nil, fmt.Errorf("%w: rights of node %q: %w", ErrUnable, r.asked.Node, err)
	}
	members, err := s.o.Client.Members(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnable, err)
	}
	for _, m := range members {
		out.Endpoints = append(out.Endpoints, m.Client)
	}
	if r.asked.Member != nil {
		if out.Member, err = s.admitMember(ctx, r); err != nil {
			return nil, err
		}
	}
	s.o.Log.Info("a host was let in", "node", r.asked.Node, "from", r.from, "member", r.asked.Member != nil)
	return out, nil
}

// admitMember adds the host to the etcd as a learner, which does not count until it has all data.
func (s *Server) admitMember(ctx context.Context, r *question) (*admission, error) {
	m := r.asked.Member
	cert, err := s.o.CA.issue([]byte(m.Request), r.asked.Node, asMember)
	if err != nil {
		return nil, said(ErrRefused, "%v", err)
	}
	for _, hp := range []string{m.Client, m.Peer, m.Join} {
		if host, _, err := net.SplitHostPort(hp); err != nil || net.ParseIP(host) == nil {
			return nil, said(ErrRefused, "address %q of the new member is not IP:PORT", printable(hp))
		}
	}
	kv, url := s.o.Client.Etcd(), "https://"+m.Peer
	list, err := kv.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnable, s.o.Client.Explain(err))
	}
	there := false
	for _, o := range list.Members {
		if !slices.Contains(o.PeerURLs, url) && o.Name != r.asked.Node {
			continue
		}
		if o.Name != "" || !o.IsLearner || !slices.Contains(o.PeerURLs, url) {
			return nil, said(ErrNameTaken, "node %q at %s is a member already: `warren control demote %s` on another member "+
				"removes it", r.asked.Node, url, r.asked.Node)
		}
		there = true // from a try before
	}
	peers := map[string]string{r.asked.Node: url}
	if !there {
		// The etcd learns a member's name when that is started: until then this says whose it is.
		if err := s.o.Client.PutMember(ctx, etcd.Member{Name: r.asked.Node, Peer: m.Peer}); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnable, err)
		}
		if err := s.addLearner(ctx, url); err != nil {
			_ = s.o.Client.DeleteMember(ctx, r.asked.Node) // it names nobody who is there
			return nil, said(ErrUnable, "the etcd takes no new member now: %v; `warren control members` shows whether all are "+
				"well", s.o.Client.Explain(err))
		}
	}
	for _, o := range list.Members {
		if len(o.PeerURLs) > 0 && !slices.Contains(o.PeerURLs, url) {
			peers[etcd.PeerName(o)] = o.PeerURLs[0]
		}
	}
	if err := GrantMember(ctx, s.o.Client, r.asked.Node); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnable, err)
	}
	key, err := s.o.CA.keyPEM()
	if err != nil {
		return nil, err
	}
	return &admission{Certificate: string(cert), CAKey: string(key), Peers: peers}, nil
}

// addLearner adds a member. The etcd refuses it until all members have been connected for some seconds.
func (s *Server) addLearner(ctx context.Context, url string) error {
	for {
		_, err := s.o.Client.Etcd().MemberAddAsLearner(ctx, []string{url})
		if !isEtcd(err, rpctypes.ErrUnhealthy) && !isEtcd(err, rpctypes.ErrMemberNotEnoughStarted) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// nameOf is the name in the certificate that the other end of the connection showed, and what it is for.
func nameOf(cs *tls.ConnectionState) (string, role) {
	if len(cs.VerifiedChains) == 0 {
		return "", asNode
	}
	cn := cs.VerifiedChains[0][0].Subject.CommonName
	if name, ok := strings.CutPrefix(cn, memberPrefix); ok {
		return name, asMember
	}
	return cn, asNode
}

// renew answers a node whose certificate is near its end.
func (s *Server) renew(ctx context.Context, r *question) (*answer, error) {
	name, as := nameOf(r.tls)
	if name == "" {
		return nil, said(ErrRefused, "a certificate is renewed with the one before it: if that has expired, join again with "+
			"a token from `warren token new --replace`")
	}
	user := name
	if as == asMember {
		user = memberPrefix + name
	}
	there, err := known(ctx, s.o.Client, user)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnable, err)
	}
	if !there {
		return nil, said(ErrRefused, "node %q was removed from the network: join again", name)
	}
	cert, err := s.o.CA.issue([]byte(r.asked.Request), name, as)
	if err != nil {
		return nil, said(ErrRefused, "%v", err)
	}
	return &answer{Version: wireVersion, Network: s.o.Client.Network(), CA: string(s.o.CA.PEM()),
		Certificate: string(cert)}, nil
}

// leave takes the node that asks out of the network.
func (s *Server) leave(ctx context.Context, r *question) (*answer, error) {
	name, as := nameOf(r.tls)
	if name == "" || as != asNode {
		return nil, said(ErrRefused, "a node leaves with its certificate")
	}
	if err := Evict(ctx, s.o.Client, name); errors.Is(err, etcd.ErrAlive) {
		return nil, said(ErrRefused, "%v", err)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnable, err)
	}
	s.o.Log.Info("a node left the network", "node", name, "from", r.from)
	return &answer{Version: wireVersion, Network: s.o.Client.Network()}, nil
}

// Evict takes a node out of the network: its name and CIDRs are given back, and its certificates are worth nothing, as
// long as nobody joins by its name. The token that it came with lets it in no second time. The client is a member's.
func Evict(ctx context.Context, client *etcd.Client, name string) error {
	err := client.Remove(ctx, name)
	if err != nil && !errors.Is(err, etcd.ErrNoNode) {
		return err
	}
	there, knownErr := known(ctx, client, name)
	if knownErr != nil {
		return knownErr
	}
	if !there {
		return err
	}
	if err := NewTokens(client).leave(ctx, name); err != nil {
		return err
	}
	return Withdraw(ctx, client, name)
}

// printable keeps what a stranger sent from breaking the lines of a log.
func printable(s string) string {
	if len(s) > 60 {
		s = s[:60] + "…"
	}
	if q := fmt.Sprintf("%q", s); q != `"`+s+`"` {
		return q
	}
	return s
}
