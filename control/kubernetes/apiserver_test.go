package kubernetes

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// An apiServer speaks as much of Kubernetes' API as a Source uses: list, watch with resource versions, bookmarks and
// compaction, and the two patches. It can go away and come back at the same address, and refuse.
type apiServer struct {
	t       *testing.T
	address string
	streams bool // it knows sendInitialEvents

	mu      sync.Mutex
	server  *http.Server
	version int
	oldest  int // watches from before get 410
	nodes   map[string]*corev1.Node
	events  []event
	moved   chan struct{}     // closed when an event comes
	refuse  map[string]int    // verb → HTTP status
	calls   map[string]int    // verb → how often
	patches []json.RawMessage // as they came
}

type event struct {
	version int
	kind    string
	node    *corev1.Node
}

func newAPIServer(t *testing.T) *apiServer {
	a := &apiServer{t: t, address: "127.0.0.1:0", nodes: map[string]*corev1.Node{}, moved: make(chan struct{}),
		version: 1000, refuse: map[string]int{}, calls: map[string]int{}}
	a.up()
	t.Cleanup(a.down)
	return a
}

// up listens, at the address of before if there was one.
func (a *apiServer) up() {
	a.t.Helper()
	listener, err := net.Listen("tcp", a.address)
	if err != nil {
		a.t.Fatal(err)
	}
	a.address = listener.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(a.serve), ReadHeaderTimeout: time.Minute}
	a.mu.Lock()
	a.server = server
	a.mu.Unlock()
	go func() { _ = server.Serve(listener) }()
}

// down closes the listener and every connection.
func (a *apiServer) down() {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.server.Close()
}

// compact forgets all events up to now, and ends the watches.
func (a *apiServer) compact() {
	a.mu.Lock()
	a.version++
	a.oldest = a.version
	a.events = nil
	a.mu.Unlock()
}

func (a *apiServer) refusing(verb string, status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse[verb] = status
}

func (a *apiServer) called(verb string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[verb]
}

// set stores the node: a new one, or the next version of one that is there.
func (a *apiServer) set(n *corev1.Node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.store(n)
}

func (a *apiServer) store(n *corev1.Node) {
	n = n.DeepCopy()
	kind := "ADDED"
	if old, ok := a.nodes[n.Name]; ok {
		kind = "MODIFIED"
		n.UID = old.UID
	}
	a.version++
	if n.UID == "" {
		n.UID = types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", a.version))
	}
	n.ResourceVersion = strconv.Itoa(a.version)
	n.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
	a.nodes[n.Name] = n
	a.happen(event{a.version, kind, n})
}

// change edits a node that is there.
func (a *apiServer) change(name string, edit func(*corev1.Node)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[name].DeepCopy()
	edit(n)
	a.store(n)
}

func (a *apiServer) get(name string) *corev1.Node {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.nodes[name].DeepCopy()
}

func (a *apiServer) remove(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[name].DeepCopy()
	delete(a.nodes, name)
	a.version++
	n.ResourceVersion = strconv.Itoa(a.version)
	a.happen(event{a.version, "DELETED", n})
}

func (a *apiServer) happen(e event) {
	a.events = append(a.events, e)
	close(a.moved)
	a.moved = make(chan struct{})
}

func (a *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	verb := map[string]string{"GET": "list", "PATCH": "patch"}[r.Method]
	if query.Get("watch") != "" {
		verb = "watch"
	}
	if strings.HasSuffix(r.URL.Path, "/status") {
		verb += " status"
	}
	a.mu.Lock()
	a.calls[verb]++
	status := a.refuse[verb]
	a.mu.Unlock()
	if verb == "watch" && query.Get("sendInitialEvents") != "" && !a.streams && status == 0 {
		status = http.StatusUnprocessableEntity
	}
	switch {
	case status != 0:
		a.fail(w, status, verb)
	case verb == "list":
		a.list(w)
	case verb == "watch":
		a.watch(w, r)
	default:
		a.patch(w, r)
	}
}

var reasons = map[int]metav1.StatusReason{401: metav1.StatusReasonUnauthorized, 403: metav1.StatusReasonForbidden,
	404: metav1.StatusReasonNotFound, 410: metav1.StatusReasonExpired, 422: metav1.StatusReasonInvalid,
	429: metav1.StatusReasonTooManyRequests, 500: metav1.StatusReasonInternalError}

func failure(status int, verb string) metav1.Status {
	return metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
		Code: int32(status), Reason: reasons[status], Message: fmt.Sprintf("no %s: %d", verb, status)}
}

func (a *apiServer) fail(w http.ResponseWriter, status int, verb string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(failure(status, verb))
}

func (a *apiServer) list(w http.ResponseWriter) {
	a.mu.Lock()
	list := corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}}
	list.ResourceVersion = strconv.Itoa(a.version)
	for _, n := range a.nodes {
		list.Items = append(list.Items, *n)
	}
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list)
}

func (a *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	send := func(kind string, object any) bool {
		err := json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object})
		w.(http.Flusher).Flush()
		return err == nil
	}
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if r.URL.Query().Get("sendInitialEvents") != "" {
		a.mu.Lock()
		from = a.version
		all := make([]*corev1.Node, 0, len(a.nodes))
		for _, n := range a.nodes {
			all = append(all, n)
		}
		a.mu.Unlock()
		for _, n := range all {
			send("ADDED", n)
		}
		mark := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}}
		mark.ResourceVersion = strconv.Itoa(from)
		mark.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		send("BOOKMARK", mark)
	}
	w.(http.Flusher).Flush()
	for {
		a.mu.Lock()
		expired := from < a.oldest
		var due []event
		for _, e := range a.events {
			if e.version > from {
				due = append(due, e)
			}
		}
		moved := a.moved
		a.mu.Unlock()
		if expired {
			send("ERROR", failure(http.StatusGone, "watch"))
			return
		}
		for _, e := range due {
			if !send(e.kind, e.node) {
				return
			}
			from = e.version
		}
		select {
		case <-r.Context().Done():
			return
		case <-moved:
		case <-time.After(50 * time.Millisecond): // a compaction
		}
	}
}

// patch accepts what a Source may say, and nothing else.
func (a *apiServer) patch(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	name, status := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/api/v1/nodes/"), "/status")
	a.mu.Lock()
	a.patches = append(a.patches, body)
	old, there := a.nodes[name]
	a.mu.Unlock()
	if !there {
		a.fail(w, http.StatusNotFound, "node")
		return
	}
	n := old.DeepCopy()
	dec := json.NewDecoder(strings.NewReader(string(body)))
	dec.DisallowUnknownFields()
	if status {
		var p struct {
			Status struct {
				Conditions []corev1.NodeCondition `json:"conditions"`
			} `json:"status"`
		}
		err = dec.Decode(&p)
		if got := r.Header.Get("Content-Type"); got != string(types.StrategicMergePatchType) {
			a.t.Errorf("status patched by %s, which replaces all conditions", got)
		}
		for _, c := range p.Status.Conditions {
			n.Status.Conditions = slices.DeleteFunc(n.Status.Conditions,
				func(o corev1.NodeCondition) bool { return o.Type == c.Type })
			n.Status.Conditions = append(n.Status.Conditions, c)
		}
	} else {
		var p struct {
			Metadata struct {
				Annotations map[string]*string `json:"annotations"`
			} `json:"metadata"`
		}
		err = dec.Decode(&p)
		for key, value := range p.Metadata.Annotations {
			if !strings.HasPrefix(key, Domain) || key == AnnotationOverrideAddresses {
				a.t.Errorf("annotation %s was patched", key)
			}
			if n.Annotations == nil {
				n.Annotations = map[string]string{}
			}
			if delete(n.Annotations, key); value != nil {
				n.Annotations[key] = *value
			}
		}
	}
	if err != nil {
		a.t.Errorf("patch %s: %v", body, err)
	}
	a.set(n)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a.get(name))
}
