package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// listed is what is read of a Node object in a list.
type listed struct {
	Metadata struct {
		Name              string            `json:"name"`
		UID               types.UID         `json:"uid"`
		ResourceVersion   string            `json:"resourceVersion"`
		CreationTimestamp metav1.Time       `json:"creationTimestamp"`
		Annotations       map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Addresses  []corev1.NodeAddress   `json:"addresses"`
		Conditions []corev1.NodeCondition `json:"conditions"`
	} `json:"status"`
}

func (l *listed) node() *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: l.Metadata.Name, UID: l.Metadata.UID,
		ResourceVersion: l.Metadata.ResourceVersion, CreationTimestamp: l.Metadata.CreationTimestamp,
		Annotations: l.Metadata.Annotations}}
	n.Spec.PodCIDRs = l.Spec.PodCIDRs
	n.Status.Addresses, n.Status.Conditions = l.Status.Addresses, l.Status.Conditions
	return n
}

// readList reads a NodeList, node by node. Decoded as a whole, the list of 5,000 nodes took 180 MB for a moment, and
// the process keeps such memory; API servers from 1.34 on stream it, others have it in one piece. A list that ends too
// early is an error, as nodes that are not in it would be taken for gone.
func readList(r io.Reader, slim func(any) (any, error)) (*corev1.NodeList, error) {
	list := &corev1.NodeList{}
	dec := json.NewDecoder(r)
	if err := delimiter(dec, '{'); err != nil {
		return nil, err
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		switch name {
		case "metadata":
			err = dec.Decode(&list.ListMeta)
		case "items":
			list.Items, err = readItems(dec, slim)
		default:
			var skipped json.RawMessage
			err = dec.Decode(&skipped)
		}
		if err != nil {
			return nil, fmt.Errorf("%v: %w", name, err)
		}
	}
	if err := delimiter(dec, '}'); err != nil {
		return nil, err
	}
	if list.ResourceVersion == "" {
		return nil, errors.New("the answer has no resourceVersion, so it is no list")
	}
	return list, nil
}

func readItems(dec *json.Decoder, slim func(any) (any, error)) ([]corev1.Node, error) {
	var items []corev1.Node
	switch begin, err := dec.Token(); {
	case err != nil:
		return nil, err
	case begin == nil: // null
		return nil, nil
	case begin != json.Delim('['):
		return nil, fmt.Errorf("%v where a list was due", begin)
	}
	for dec.More() {
		var l listed
		if err := dec.Decode(&l); err != nil {
			return nil, err
		}
		n, err := slim(l.node())
		if err != nil {
			return nil, err
		}
		if n, ok := n.(*corev1.Node); ok {
			items = append(items, *n)
		}
	}
	return items, delimiter(dec, ']')
}

func delimiter(dec *json.Decoder, want json.Delim) error {
	got, err := dec.Token()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	if err == nil && got != want {
		err = fmt.Errorf("%v where %v was due", got, want)
	}
	return err
}
