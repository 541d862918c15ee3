package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// ServerName is what the certificates of Warren's own members are for: whatever the address at which one is reached,
// another node's certificate does not do.
const ServerName = "member.warren.internal"

// Files name the files with which a host talks to an etcd over TLS.
type Files struct {
	CA   string // certificates of the authorities that the etcd's is checked by; empty: the system's
	Cert string // this host's certificate with its chain; empty: it shows none
	Key  string // its private key

	// Endpoints are where the etcd is reached: of a server that is reached by an address crypto/tls does not say which one
	// it is, and its certificate has to be for one of them.
	Endpoints []string

	// Own says that the etcd is Warren's own: its certificates are for ServerName instead of an address. And as they are
	// all issued by one authority, a host whose clock is behind, as it may be after a start, takes a certificate's
	// beginning for the present.
	Own bool
}

// Config makes a configuration that takes the files as they are whenever a connection begins, so that a renewed
// certificate is in use from then on. The files are read once, to say at once what is wrong with them.
func (f Files) Config() (*tls.Config, error) {
	l := &loader{files: f}
	if _, err := l.load(); err != nil {
		return nil, err
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			got, err := l.load()
			if err != nil {
				return nil, err
			}
			return &got.cert, nil
		},
		// crypto/tls takes its authorities when it is configured; these may change.
		InsecureSkipVerify: true,
	}
	if f.Own {
		cfg.ServerName, cfg.MinVersion = ServerName, tls.VersionTLS13
	}
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		got, err := l.load()
		if err != nil {
			return err
		}
		if f.Own {
			cs.ServerName = ServerName // gRPC connects to the endpoint's
		}
		if err := VerifyServer(cs, got.roots, f.Own); err != nil || cs.ServerName != "" {
			return err
		}
		return f.verifyAddress(cs.PeerCertificates[0])
	}
	return cfg, nil
}

// verifyAddress checks that the certificate is for an address at which the etcd is reached.
func (f Files) verifyAddress(leaf *x509.Certificate) error {
	var addrs []string
	for _, e := range f.Endpoints {
		if u, err := url.Parse(endpointURLs([]string{e}, true)[0]); err == nil && net.ParseIP(u.Hostname()) != nil {
			addrs = append(addrs, u.Hostname())
		}
	}
	if slices.ContainsFunc(addrs, func(a string) bool { return leaf.VerifyHostname(a) == nil }) {
		return nil
	}
	return fmt.Errorf("the server's certificate is for %v%v and not for an address at which the etcd is reached (%s): "+
		"name the etcd as its certificate does, or give it one for its address", leaf.DNSNames, leaf.IPAddresses,
		strings.Join(addrs, ", "))
}

// VerifyServer checks the chain of a server as crypto/tls does, for the name that the connection was made to; to an
// address it has none.
func VerifyServer(cs tls.ConnectionState, roots *x509.CertPool, lateClock bool) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the server shows no certificate")
	}
	leaf := cs.PeerCertificates[0]
	opt := x509.VerifyOptions{Roots: roots, DNSName: cs.ServerName, Intermediates: x509.NewCertPool(),
		CurrentTime: time.Now()}
	if lateClock && opt.CurrentTime.Before(leaf.NotBefore) {
		opt.CurrentTime = leaf.NotBefore
	}
	for _, c := range cs.PeerCertificates[1:] {
		opt.Intermediates.AddCert(c)
	}
	_, err := leaf.Verify(opt)
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("the server's certificate is valid from %s to %s, and this host's clock says %s: set the "+
			"clock, or renew the certificate", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339),
			opt.CurrentTime.UTC().Format(time.RFC3339))
	}
	if err != nil {
		return fmt.Errorf("the server's certificate: %w", err)
	}
	return nil
}

// A loader reads the files again when they changed.
type loader struct {
	files Files

	mu    sync.Mutex
	last  [3]stamp
	found *loaded
}

type stamp struct {
	size int64
	time time.Time
}

type loaded struct {
	roots *x509.CertPool
	cert  tls.Certificate
}

func (l *loader) load() (*loaded, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var now [3]stamp
	for i, path := range []string{l.files.CA, l.files.Cert, l.files.Key} {
		if path == "" {
			continue
		}
		st, err := os.Stat(path)
		if err != nil {
			return l.keep(fmt.Errorf("etcd's TLS: %w", err))
		}
		now[i] = stamp{st.Size(), st.ModTime()}
	}
	if l.found != nil && now == l.last {
		return l.found, nil
	}
	got := &loaded{}
	if l.files.CA != "" {
		pem, err := os.ReadFile(l.files.CA)
		if err != nil {
			return l.keep(fmt.Errorf("etcd's TLS: %w", err))
		}
		got.roots = x509.NewCertPool()
		if !got.roots.AppendCertsFromPEM(pem) {
			return l.keep(fmt.Errorf("%s: no certificate in PEM form is in it: name the file of etcd's authority", l.files.CA))
		}
	}
	if l.files.Cert != "" || l.files.Key != "" {
		var err error
		if got.cert, err = tls.LoadX509KeyPair(l.files.Cert, l.files.Key); err != nil {
			// Between the replacement of the one and of the other they do not fit together.
			return l.keep(fmt.Errorf("certificate %s with key %s: %w", l.files.Cert, l.files.Key, err))
		}
	}
	l.last, l.found = now, got
	return got, nil
}

// keep goes on with what was good before.
func (l *loader) keep(err error) (*loaded, error) {
	if l.found != nil {
		return l.found, nil
	}
	return nil, err
}
