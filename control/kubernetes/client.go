package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"
)

// A call that gets no answer for so long fails: one that only the server's answer ends would wait forever for a server
// that hangs. A list of 5,000 nodes takes some seconds, and is given up after listTimeout.
const (
	answerTimeout = 30 * time.Second
	listTimeout   = 10 * time.Minute
)

// A client asks for Node objects and nothing else. It is made of client-go's REST client with the types of core/v1: the
// typed clients, even the one of core/v1 alone, link every type of Kubernetes, 13 MB.
type client struct {
	rest  rest.Interface
	codec runtime.ParameterCodec
	host  string // as messages name it

	patience time.Duration // answerTimeout, but in tests
}

// restConfig finds out how the API server is reached.
func restConfig(opt *Options) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if opt.Kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
		switch {
		case errors.Is(err, rest.ErrNotInCluster):
			return nil, errors.New("this process runs in no pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not " +
				"set) and no kubeconfig is named; run it by the DaemonSet of deploy/kubernetes, or name a file with the key " +
				"kubernetes.kubeconfig")
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("the pod has no service account's token: %w; set automountServiceAccountToken: true", err)
		case err != nil:
			return nil, fmt.Errorf("read the pod's service account: %w", err)
		}
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", opt.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w; `kubectl --kubeconfig FILE get nodes` tries it", opt.Kubeconfig, err)
		}
	}
	if opt.Server != "" {
		cfg.Host = opt.Server
	}
	return cfg, nil
}

func newClient(cfg *rest.Config, userAgent string) (*client, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("types of Kubernetes: %w", err)
	}
	cfg = rest.CopyConfig(cfg)
	cfg.APIPath = "/api"
	cfg.GroupVersion = &corev1.SchemeGroupVersion
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON // half the bytes of JSON
	cfg.UserAgent = userAgent
	cfg.WarningHandlerWithContext = rest.NoWarnings{}
	c, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("client for the API server at %s: %w", cfg.Host, err)
	}
	return &client{rest: c, codec: runtime.NewParameterCodec(scheme), host: cfg.Host, patience: answerTimeout}, nil
}

// list returns the nodes as far as a store needs them.
func (c *client) list(ctx context.Context, opt metav1.ListOptions, slim func(any) (any, error)) (*corev1.NodeList,
	error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := time.AfterFunc(c.patience, func() { cancel(errSilent) })
	defer patience.Stop()
	body, err := c.rest.Get().Resource("nodes").VersionedParams(&opt, c.codec).
		SetHeader("Accept", runtime.ContentTypeJSON).Stream(ctx)
	if err != nil {
		return nil, silence(ctx, err)
	}
	defer body.Close()
	patience.Reset(listTimeout)
	list, err := readList(body, slim)
	if err != nil {
		return nil, fmt.Errorf("list of nodes: %w", silence(ctx, err))
	}
	return list, nil
}

func (c *client) watch(ctx context.Context, opt metav1.ListOptions) (watch.Interface, error) {
	opt.Watch = true
	ctx, cancel := context.WithCancelCause(ctx)
	patience := time.AfterFunc(c.patience, func() { cancel(errSilent) })
	defer patience.Stop()
	w, err := c.rest.Get().Resource("nodes").VersionedParams(&opt, c.codec).Watch(ctx)
	if err != nil {
		err = silence(ctx, err)
		cancel(nil)
		return nil, err
	}
	return watching{w, func() { cancel(nil) }}, nil
}

var errSilent = errors.New("it takes connections and does not answer")

// silence is the error of a call that was given up, in words.
func silence(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		return errSilent
	}
	return err
}

// watching is a watch whose context ends with it.
type watching struct {
	watch.Interface
	cancel func()
}

func (w watching) Stop() {
	w.Interface.Stop()
	w.cancel()
}

// A patch is a change of a Node object; with sub "status" of its status.
type patch struct {
	kind types.PatchType
	sub  string
	body any
}

func (c *client) patch(ctx context.Context, name string, p patch) (*corev1.Node, error) {
	body, err := json.Marshal(p.body)
	if err != nil {
		return nil, fmt.Errorf("patch of Node %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	out := &corev1.Node{}
	req := c.rest.Patch(p.kind).Resource("nodes").Name(name)
	if p.sub != "" {
		req = req.SubResource(p.sub)
	}
	return out, req.VersionedParams(&metav1.PatchOptions{FieldManager: "warren"}, c.codec).Body(body).Do(ctx).Into(out)
}

// quiet is a log for client-go: whatever it says is for those who debug, as what concerns users is said by the Source.
type quiet struct{ slog.Handler }

func quietLogger(log *slog.Logger) logr.Logger { return logr.FromSlogHandler(quiet{log.Handler()}) }

// Enabled implements slog.Handler; client-go's verbosity n is level -n here.
func (q quiet) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= -2 && q.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup implements slog.Handler.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }

// An endingClock is a clock whose timers end with a context: the reflector waits for some of them whatever happens.
type endingClock struct {
	clock.RealClock
	ctx context.Context
}

// After implements clock.Clock.
func (c endingClock) After(d time.Duration) <-chan time.Time {
	out := make(chan time.Time, 1)
	go func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.ctx.Done():
		}
		out <- time.Now()
	}()
	return out
}
