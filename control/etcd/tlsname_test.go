package etcd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/warren-net/warren/control/etcd"
)

// serverFor is a TLS server with a certificate for these names, and the file with its authority.
func serverFor(t *testing.T, names []string, addrs []net.IP) (at, ca string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, DNSNames: names,
		IPAddresses: addrs, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der},
		PrivateKey: k}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = conn.(*tls.Conn).Handshake()
				_ = conn.Close()
			}()
		}
	}()
	ca = filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String(), ca
}

// TestServerNames: crypto/tls has no name for a server that is reached by its address, and no certificate of somebody
// else's that the same authority issued will do for it.
func TestServerNames(t *testing.T) {
	for _, c := range []struct {
		what  string
		names []string
		addrs []net.IP
		good  bool
	}{
		{"its address", nil, []net.IP{net.IPv4(127, 0, 0, 1)}, true},
		{"another address", nil, []net.IP{net.IPv4(192, 0, 2, 1)}, false},
		{"a name", []string{"other.example"}, nil, false},
	} {
		at, ca := serverFor(t, c.names, c.addrs)
		cfg, err := etcd.Files{CA: ca, Endpoints: []string{at, "https://other.example:1"}}.Config()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", at)
		if err == nil {
			_ = conn.Close()
		}
		if (err == nil) != c.good {
			t.Errorf("a certificate for %s: %v", c.what, err)
		}
	}
}
