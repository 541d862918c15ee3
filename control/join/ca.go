package join

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/internal/atomicfile"
)

// How long certificates last, and how long before they are issued they begin.
const (
	caLife   = 30 * 365 * 24 * time.Hour
	certLife = 365 * 24 * time.Hour
	backdate = 24 * time.Hour
)

// The files below a node's Dir.
const (
	caFile     = "ca.crt"
	caKeyFile  = "ca.key" // members have it, as each of them can let hosts in
	NodeName   = "node"
	MemberName = "member"
)

// Dir is where a node keeps the certificates of this package, below Warren's state directory.
func Dir(stateDir string) string { return filepath.Join(etcd.Dir(stateDir), "pki") }

// Files are those with which a node talks to the network's etcd.
func Files(stateDir string) etcd.Files { return files(stateDir, NodeName) }

// MemberFiles are those of a member: for its server, its peers, and for what only a member may do.
func MemberFiles(stateDir string) etcd.Files { return files(stateDir, MemberName) }

func files(stateDir, name string) etcd.Files {
	dir := Dir(stateDir)
	return etcd.Files{CA: filepath.Join(dir, caFile), Cert: filepath.Join(dir, name+".crt"),
		Key: filepath.Join(dir, name+".key"), Own: true}
}

// A CA is the authority of one network. It is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
}

// NewCA makes the authority of a network.
func NewCA(network string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: "warren network " + network},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLife), IsCA: true, BasicConstraintsValid: true,
		MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return newCA(der, key)
}

func newCA(der []byte, key *ecdsa.PrivateKey) (*CA, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the authority's key is not that of its certificate")
	}
	return &CA{cert: cert, key: key, now: time.Now}, nil
}

// serial is a number that no other certificate has: 127 random bits.
func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// LoadCA reads the authority from a member's state directory. The error is os.ErrNotExist where it has none.
func LoadCA(stateDir string) (*CA, error) {
	certPEM, err := os.ReadFile(filepath.Join(Dir(stateDir), caFile))
	if err != nil {
		return nil, fmt.Errorf("the network's authority: %w", err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(Dir(stateDir), caKeyFile))
	if err != nil {
		return nil, fmt.Errorf("the authority's key, which members have: %w", err)
	}
	return parseCA(certPEM, keyPEM)
}

func parseCA(certPEM, keyPEM []byte) (*CA, error) {
	cert, _ := pem.Decode(certPEM)
	key, _ := pem.Decode(keyPEM)
	if cert == nil || key == nil {
		return nil, errors.New("the network's authority is not in PEM form")
	}
	k, err := x509.ParsePKCS8PrivateKey(key.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the authority's key: %w", err)
	}
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the authority's key is of the type %T, and not ECDSA", k)
	}
	return newCA(cert.Bytes, ec)
}

// Save writes the authority with its key to a member's state directory.
func (ca *CA) Save(stateDir string) error {
	key, err := ca.keyPEM()
	if err != nil {
		return err
	}
	return errors.Join(write(stateDir, caKeyFile, key), write(stateDir, caFile, ca.PEM()))
}

func (ca *CA) keyPEM() ([]byte, error) { return pemKey(ca.key) }

// PEM is the authority's certificate.
func (ca *CA) PEM() []byte { return pemCert(ca.cert.Raw) }

// Hash is what tokens know the authority by: SHA-256 of its public key, as it stands in the certificate.
func (ca *CA) Hash() [sha256.Size]byte { return hashOf(ca.cert) }

func hashOf(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// A role is what a certificate is for.
type role int

const (
	asNode role = iota
	asMember
)

// memberPrefix begins the common names of members; etcd.CheckName admits it in no node's name.
const memberPrefix = "member:"

func (r role) prefix() string {
	if r == asMember {
		return memberPrefix
	}
	return ""
}

// issue signs the request's key, for the user that it is told: what else the request says does not count. A common name
// of more than 64 characters, as long names make one, is against X.509; neither crypto/x509 nor etcd minds.
func (ca *CA) issue(csrPEM []byte, user string) ([]byte, error) {
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	now := ca.now()
	template := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: user},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(certLife), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, as := nameIn(user); as == asMember {
		template.DNSNames = []string{etcd.ServerName}
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	// With the authority behind it, so that a server's chain shows a joining host what its token names.
	return append(pemCert(der), ca.PEM()...), nil
}

func parseRequest(csrPEM []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil {
		return nil, errors.New("the request for a certificate is not in PEM form")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the request for a certificate: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request for a certificate: %w", err)
	}
	if _, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, fmt.Errorf("the request is for a key of the type %T, and not ECDSA", csr.PublicKey)
	}
	return csr, nil
}

// IssuedTo is the name of the node that this authority gave the host its certificate for; empty: it has none.
func (ca *CA) IssuedTo(stateDir string) string {
	cert, err := loadCert(MemberFiles(stateDir).Cert)
	if err != nil || cert.CheckSignatureFrom(ca.cert) != nil {
		return ""
	}
	name, _ := nameIn(cert.Subject.CommonName)
	return name
}

// Issue gives a member's own host, which has the authority, the certificates that others are sent: of the node and of
// the member. Where it has some of the same name, the new ones are for the same users; those of another name are lost,
// and with them the way into an etcd that knows no others.
func (ca *CA) Issue(stateDir, name string) error {
	for file, as := range map[string]role{NodeName: asNode, MemberName: asMember} {
		user := newUser(name, as)
		if old, err := loadCert(files(stateDir, file).Cert); err == nil && old.CheckSignatureFrom(ca.cert) == nil {
			if oldName, oldAs := nameIn(old.Subject.CommonName); oldName == name && oldAs == as {
				user = old.Subject.CommonName
			}
		}
		csr, err := request(stateDir, file, name)
		if err != nil {
			return err
		}
		cert, err := ca.issue(csr, user)
		if err != nil {
			return err
		}
		if err := write(stateDir, file+".crt", cert); err != nil {
			return err
		}
	}
	return nil
}

// request is a request for a certificate for the key in the file, which is made where there is none.
func request(stateDir, file, name string) ([]byte, error) {
	path := filepath.Join(Dir(stateDir), file+".key")
	key, err := loadKey(path)
	if errors.Is(err, os.ErrNotExist) {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
		var b []byte
		if b, err = pemKey(key); err == nil {
			err = write(stateDir, file+".key", b)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("this host's key for the network: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

func loadKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s is not in PEM form", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s has a key of the type %T, and not ECDSA", path, k)
	}
	return ec, nil
}

func pemKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func pemCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// write puts a file in place that only its owner can read.
func write(stateDir, name string, data []byte) error {
	if err := etcd.MakeDir(etcd.Dir(stateDir)); err != nil {
		return err
	}
	if err := etcd.MakeDir(Dir(stateDir)); err != nil {
		return err
	}
	path := filepath.Join(Dir(stateDir), name)
	if err := atomicfile.Replace(path, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
