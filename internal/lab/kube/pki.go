package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// validFor is more than a cluster lives.
const validFor = 24 * time.Hour

// An authority signs the certificates of everybody in the cluster, as in one made by hand.
type authority struct {
	dir  string // of all certificates and keys
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// A subject is whom a certificate names. To the API server the name is the user and the groups are its groups.
type subject struct {
	name      string
	groups    []string
	hosts     []string // names under which it serves
	addresses []netip.Addr
}

func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, key: key}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "kubernetes"},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(validFor),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("the cluster's authority: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("the cluster's authority: %w", err)
	}
	return a, a.write("ca", der, key)
}

// These are where others find what the authority wrote.
func (a *authority) caFile() string              { return a.certFile("ca") }
func (a *authority) certFile(name string) string { return filepath.Join(a.dir, name+".crt") }
func (a *authority) keyFile(name string) string  { return filepath.Join(a.dir, name+".key") }

func (a *authority) kubeconfigFile(name string) string {
	return filepath.Join(a.dir, name+".kubeconfig")
}

// issue makes a key and a certificate, both for clients and servers, in files of this name.
func (a *authority) issue(file string, s subject) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: s.name, Organization: s.groups},
		NotBefore:    a.cert.NotBefore,
		NotAfter:     a.cert.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:     s.hosts,
	}
	for _, addr := range s.addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return fmt.Errorf("certificate of %s: %w", s.name, err)
	}
	return a.write(file, der, key)
}

func (a *authority) write(file string, cert []byte, key *ecdsa.PrivateKey) error {
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	if err := os.WriteFile(a.certFile(file), block, 0o600); err != nil {
		return err
	}
	return os.WriteFile(a.keyFile(file), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600)
}

// kubeconfig issues a certificate to a user of the API server, and returns the path of a file with which a client is
// that user.
func (a *authority) kubeconfig(file, server string, user subject) (string, error) {
	if err := a.issue(file, user); err != nil {
		return "", err
	}
	type named map[string]any
	content, err := json.MarshalIndent(map[string]any{
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": []named{{"name": "lab", "cluster": named{
			"server": server, "certificate-authority": a.caFile(),
		}}},
		"users": []named{{"name": "user", "user": named{
			"client-certificate": a.certFile(file), "client-key": a.keyFile(file),
		}}},
		"contexts":        []named{{"name": "lab", "context": named{"cluster": "lab", "user": "user"}}},
		"current-context": "lab",
	}, "", "  ")
	if err != nil {
		return "", err
	}
	path := a.kubeconfigFile(file)
	return path, os.WriteFile(path, content, 0o600)
}
