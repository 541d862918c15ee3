package kubernetes

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// A trouble is why the source does not do what it is for.
type trouble struct {
	cause string // the same for the same cause, whatever the message's details are
	err   error
}

// The kinds of trouble; one of each at a time. The first one that there is is the one to tell: it most likely explains
// the others.
const (
	troubleWatch     = iota // nodes are not listed or watched
	troubleOwn              // the own object lacks something
	troublePublish          // the annotations cannot be written
	troubleFight            // somebody else writes them
	troubleCondition        // the condition cannot be written
	troubleKinds
)

func (s *Source) set(kind int, t *trouble) {
	s.mu.Lock()
	before := s.troubles[kind]
	s.troubles[kind] = t
	s.mu.Unlock()
	if (before == nil) != (t == nil) || before != nil && before.cause != t.cause {
		poke(s.wake)
	}
}

func (s *Source) worst() *trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.troubles {
		if t != nil {
			return t
		}
	}
	return nil
}

// refused reports whether an API server has answered, and won't do it another time either.
func refused(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && !apierrors.IsTooManyRequests(err) && !apierrors.IsServiceUnavailable(err)
}

const stays = "what it said last stays in force, and is compared when it answers again"

// watchTrouble says what it means that nodes could not be listed or watched.
func (c *client) watchTrouble(verb string, err error) *trouble {
	if t := c.common(err, stays); t != nil {
		return t
	}
	if apierrors.IsForbidden(err) {
		return &trouble{"forbidden " + verb, fmt.Errorf("the API server at %s does not let Warren %s Node objects: %w; "+
			"apply the ClusterRole and ClusterRoleBinding of deploy/kubernetes, or allow its user get, list, watch and patch "+
			"of nodes and patch of nodes/status; %s", c.host, verb, err, stays)}
	}
	return &trouble{"answer " + string(apierrors.ReasonForError(err)), fmt.Errorf("the API server at %s fails to %s Node "+
		"objects: %w; look at its log; %s", c.host, verb, err, stays)}
}

// patchTrouble says what it means that the own object could not be written.
func (c *client) patchTrouble(resource, node, consequence string, err error) *trouble {
	if t := c.common(err, consequence); t != nil {
		return t
	}
	switch {
	case apierrors.IsForbidden(err):
		return &trouble{"forbidden " + resource, fmt.Errorf("the API server at %s does not let Warren patch %s of %s: %w; "+
			"apply deploy/kubernetes (its ClusterRole allows patch of nodes and nodes/status); where an admission policy holds "+
			"a pod to its own node, this process has to run on %s; %s", c.host, resource, node, err, node, consequence)}
	case apierrors.IsNotFound(err):
		return absent(node)
	}
	return &trouble{resource + " " + string(apierrors.ReasonForError(err)), fmt.Errorf("the API server at %s fails to "+
		"patch %s of %s: %w; an admission webhook may have refused it; %s", c.host, resource, node, err, consequence)}
}

// common explains what may be wrong with any call; nil: nothing of that.
func (c *client) common(err error, consequence string) *trouble {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var status apierrors.APIStatus
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err // without the request's URL, which says nothing that helps
	}
	switch {
	case apierrors.IsUnauthorized(err):
		return &trouble{"unauthorized", fmt.Errorf("the API server at %s does not accept Warren's credentials: %w; the "+
			"service account was deleted, or the kubeconfig's token or certificate has ended, or it is another cluster's; %s",
			c.host, err, consequence)}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return &trouble{"expired", fmt.Errorf("the certificate of the API server at %s is of another time than this host's "+
			"clock: %w; compare the clocks, or renew it; %s", c.host, err, consequence)}
	case errors.As(err, &authority), errors.As(err, &host), errors.As(err, &invalid):
		return &trouble{"certificate", fmt.Errorf("the API server at %s shows a certificate that is not its own: %w; the "+
			"kubeconfig's certificate-authority has to be the cluster's, and the address one that the certificate names; %s",
			c.host, err, consequence)}
	case errors.As(err, &status):
		return nil
	}
	return &trouble{"unreachable", fmt.Errorf("the API server at %s cannot be reached: %w; see that it runs, and that "+
		"this host reaches that address (a ClusterIP needs kube-proxy; the key kubernetes.server names another); %s", c.host,
		err, consequence)}
}

func absent(node string) *trouble {
	return &trouble{"absent", fmt.Errorf("this cluster has no Node object %s: its kubelet has not registered yet, or "+
		"under another name; `kubectl get nodes` shows the names, and --node (in a DaemonSet NODE_NAME, from spec.nodeName) "+
		"has to be one of them", excerpt(node))}
}
