package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/warren-net/warren/control/etcd"
)

// A Renewer keeps a host's certificates from expiring.
type Renewer struct {
	StateDir string
	CA       *CA                                     // of a member, which issues its own; nil: a member is asked
	Joins    func(context.Context) ([]string, error) // HOST:PORT of the members that can be asked
	Log      *slog.Logger

	Now   func() time.Time // nil: time.Now
	Every time.Duration    // between two looks; 0: an hour
}

// Run renews what is due until ctx ends. What fails is tried again with the next look: there are months for it.
func (r *Renewer) Run(ctx context.Context) {
	every := r.Every
	if every == 0 {
		every = time.Hour
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		if err := r.Renew(ctx); err != nil && ctx.Err() == nil {
			r.Log.Error("this host's certificate for the network is not renewed yet", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Renew renews what is due: where a third of the time is left, or less.
func (r *Renewer) Renew(ctx context.Context) error {
	names := []string{NodeName}
	if r.CA != nil {
		names = append(names, MemberName)
	}
	var errs []error
	for _, name := range names {
		c, err := loadCert(files(r.StateDir, name).Cert)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		now := time.Now()
		if r.Now != nil {
			now = r.Now()
		}
		if c.NotAfter.Sub(now) > c.NotAfter.Sub(c.NotBefore)/3 {
			continue
		}
		if err := r.renew(ctx, name, c); err != nil {
			errs = append(errs, fmt.Errorf("certificate %s, which expires at %s: %w", files(r.StateDir, name).Cert,
				c.NotAfter.Format(time.RFC3339), err))
			continue
		}
		r.Log.Info("this host's certificate for the network was renewed", "certificate", files(r.StateDir, name).Cert)
	}
	return errors.Join(errs...)
}

func (r *Renewer) renew(ctx context.Context, name string, old *x509.Certificate) error {
	csr, err := request(r.StateDir, name, old.Subject.CommonName)
	if err != nil {
		return err
	}
	if r.CA != nil {
		cert, err := r.CA.issue(csr, old.Subject.CommonName)
		if err != nil {
			return err
		}
		return write(r.StateDir, name+".crt", cert)
	}
	joins, err := r.Joins(ctx)
	if err != nil {
		return err
	}
	err = errors.New("no member is known")
	for _, address := range joins {
		if err = r.ask(ctx, address, name, csr); err == nil {
			return nil
		}
	}
	return err
}

// ask has a member renew the certificate. The key stays, so that the file of the one always fits that of the other.
func (r *Renewer) ask(ctx context.Context, address, name string, csr []byte) error {
	body, err := json.Marshal(ask{Version: wireVersion, Request: string(csr)})
	if err != nil {
		return err
	}
	got, err := authenticated(ctx, files(r.StateDir, name), address, call{path: pathRenew, body: body})
	if err != nil {
		return err
	}
	return write(r.StateDir, name+".crt", []byte(got.Certificate))
}

// Leave has a member take this host's node out of the network.
func Leave(ctx context.Context, stateDir string, joins []string) error {
	body, err := json.Marshal(ask{Version: wireVersion})
	if err != nil {
		return err
	}
	err = errors.New("no member is known that could take this node out of the network")
	for _, address := range joins {
		if _, err = authenticated(ctx, files(stateDir, NodeName), address, call{path: pathLeave, body: body}); err == nil {
			return nil
		}
	}
	return err
}

// authenticated asks a member over a connection that the host's certificate is shown on.
func authenticated(ctx context.Context, with etcd.Files, address string, c call) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cfg, err := with.Config()
	if err != nil {
		return nil, err
	}
	cfg.MinVersion, cfg.NextProtos = tls.VersionTLS13, []string{"http/1.1"}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("ask the member at %s: %w", address, err)
	}
	defer conn.Close()
	return post(ctx, conn, c)
}

// JoinsOf asks the etcd at which addresses its members let hosts in.
func JoinsOf(cfg etcd.Config) func(context.Context) ([]string, error) {
	return func(ctx context.Context) ([]string, error) {
		c, err := etcd.NewClient(cfg)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		members, err := c.Members(ctx)
		if err != nil {
			return nil, err
		}
		var out []string
		for _, m := range members {
			if m.Join != "" {
				out = append(out, m.Join)
			}
		}
		return out, nil
	}
}
