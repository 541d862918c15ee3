package check

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const (
	base   = "../kubernetes"
	policy = "../kubernetes/own-node"
	chart  = "../helm/warren"
)

// objects are what a manifest has, by kind and name.
type objects map[string]map[string]any

func split(t *testing.T, manifest []byte) objects {
	t.Helper()
	out := objects{}
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifest)))
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		var o map[string]any
		if err := yaml.Unmarshal(doc, &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o == nil {
			continue
		}
		meta, _ := o["metadata"].(map[string]any)
		name := fmt.Sprintf("%v %v", o["kind"], meta["name"])
		if _, twice := out[name]; twice {
			t.Errorf("%s comes twice", name)
		}
		out[name] = o
	}
}

func kustomized(t *testing.T, fs filesys.FileSystem, dir string) objects {
	t.Helper()
	all, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := all.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return split(t, manifest)
}

// rendered is the chart as `helm install warren --namespace NAMESPACE --set ...` renders it.
func rendered(t *testing.T, namespace string, set map[string]any) objects {
	t.Helper()
	c, err := loader.LoadDir(chart)
	if err != nil {
		t.Fatal(err)
	}
	values, err := util.ToRenderValues(c, set,
		common.ReleaseOptions{Name: "warren", Namespace: namespace, IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Engine{Strict: true}.RenderWithContext(t.Context(), c, values)
	if err != nil {
		t.Fatal(err)
	}
	var manifest bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if path.Ext(name) == ".yaml" {
			manifest.WriteString("---\n" + files[name] + "\n")
		}
	}
	return split(t, manifest.Bytes())
}

// strict decodes every object as the API server does with fieldValidation=Strict, and returns the DaemonSet.
func strict(t *testing.T, all objects) *appsv1.DaemonSet {
	t.Helper()
	var ds *appsv1.DaemonSet
	for name, o := range all {
		var into metav1.Object
		switch o["kind"] {
		case "Namespace":
			into = &corev1.Namespace{}
		case "ServiceAccount":
			into = &corev1.ServiceAccount{}
		case "ConfigMap":
			into = &corev1.ConfigMap{}
		case "ClusterRole":
			into = &rbacv1.ClusterRole{}
		case "ClusterRoleBinding":
			into = &rbacv1.ClusterRoleBinding{}
		case "DaemonSet":
			ds = &appsv1.DaemonSet{}
			into = ds
		case "ValidatingAdmissionPolicy":
			into = &admissionv1.ValidatingAdmissionPolicy{}
		case "ValidatingAdmissionPolicyBinding":
			into = &admissionv1.ValidatingAdmissionPolicyBinding{}
		default:
			t.Errorf("%s: of a kind that nobody expects", name)
			continue
		}
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(text, into); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if labels := into.GetLabels(); labels["app.kubernetes.io/name"] != "warren" {
			t.Errorf("%s: labels %v", name, labels)
		}
	}
	if ds == nil {
		t.Fatal("there is no DaemonSet")
	}
	return ds
}

// same compares object by object; the configuration inside of the ConfigMap by what it says.
func same(t *testing.T, got, want objects) {
	t.Helper()
	for _, all := range []objects{got, want} {
		data := all["ConfigMap warren"]["data"].(map[string]any)
		if text, ok := data["warren.yaml"].(string); ok {
			var config map[string]any
			if err := yaml.UnmarshalStrict([]byte(text), &config); err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			data["warren.yaml"] = config
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !reflect.DeepEqual(got[name], want[name]) {
			g, _ := yaml.Marshal(got[name])
			w, _ := yaml.Marshal(want[name])
			t.Errorf("%s differs; got\n%s\nwant\n%s", name, g, w)
		}
	}
	for name := range got {
		if want[name] == nil {
			t.Errorf("%s is there as well", name)
		}
	}
}

func file(t *testing.T, name string) objects {
	t.Helper()
	text, err := filesys.MakeFsOnDisk().ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return split(t, text)
}

// TestSame holds that `kubectl apply -f`, `kubectl apply -k` and `helm install` with the chart's values do the same.
func TestSame(t *testing.T) {
	want := file(t, base+"/warren.yaml")
	strict(t, want)
	disk := filesys.MakeFsOnDisk()
	same(t, kustomized(t, disk, base), want)
	same(t, rendered(t, "warren-system", map[string]any{"createNamespace": true}), want)
	delete(want, "Namespace warren-system")
	same(t, rendered(t, "warren-system", nil), want)
}

// TestPolicy holds the same with the policy, as a component and as a value.
func TestPolicy(t *testing.T) {
	want := file(t, base+"/warren.yaml")
	maps.Copy(want, file(t, policy+"/policy.yaml"))
	fs := filesys.MakeFsInMemory()
	disk := filesys.MakeFsOnDisk()
	for _, name := range []string{"warren.yaml", "kustomization.yaml", "own-node/kustomization.yaml",
		"own-node/policy.yaml"} {
		text, err := disk.ReadFile(base + "/" + name)
		if err == nil {
			err = fs.WriteFile("/base/"+name, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := fs.WriteFile("/mine/kustomization.yaml",
		[]byte("resources: [../base]\ncomponents: [../base/own-node]\n")); err != nil {
		t.Fatal(err)
	}
	got := kustomized(t, fs, "/mine")
	strict(t, got)
	same(t, got, want)
	same(t, rendered(t, "warren-system", map[string]any{"createNamespace": true, "ownNodePolicy": true}), want)
}

// TestChartValues goes through the values: each does what it says and the rest stays valid.
func TestChartValues(t *testing.T) {
	all := rendered(t, "net", map[string]any{
		"image":            map[string]any{"repository": "192.0.2.1:5000/warren", "tag": "v9"},
		"imagePullSecrets": []any{map[string]any{"name": "secret"}},
		"config":           map[string]any{"cluster": []any{"10.0.0.0/9"}, "encapsulation": "vxlan"},
		"cni": map[string]any{"mode": "bridge", "chain": []any{"portmap", "bandwidth"},
			"binDir": "/usr/lib/cni"},
		"apiServer": "https://192.0.2.1:6443", "ownNodePolicy": true, "extraArgs": []any{"--log-level=debug"},
		"tolerations": []any{}, "podAnnotations": map[string]any{"a": "b"}, "createNamespace": true,
		"updateStrategy": map[string]any{"rollingUpdate": map[string]any{"maxUnavailable": "10%"}},
	})
	ds := strict(t, all)
	pod := ds.Spec.Template.Spec
	install, daemon := pod.InitContainers[0], pod.Containers[0]
	for what, ok := range map[string]bool{
		"namespaces": ds.Namespace == "net" && all["Namespace net"] != nil &&
			strings.Contains(fmt.Sprint(all["ConfigMap warren"]["metadata"]), "namespace:net"),
		"images":  install.Image == "192.0.2.1:5000/warren:v9" && daemon.Image == install.Image,
		"secrets": len(pod.ImagePullSecrets) == 1,
		"mode":    slices.Contains(install.Args, "--mode=bridge"),
		"chain":   slices.Contains(install.Args, "--chain=portmap,bandwidth"),
		"args":    slices.Contains(daemon.Args, "--log-level=debug"),
		"bin dir": slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool {
			return v.Name == "cni-bin" && v.HostPath.Path == "/usr/lib/cni"
		}),
		"tolerations": len(pod.Tolerations) == 0,
		"annotations": ds.Spec.Template.Annotations["a"] == "b",
		"update":      ds.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.String() == "10%",
		"binding": strings.Contains(fmt.Sprint(all["ClusterRoleBinding warren"]), "namespace:net") &&
			strings.Contains(fmt.Sprint(all["ValidatingAdmissionPolicy warren-own-node"]), "serviceaccount:net:warren"),
	} {
		if !ok {
			t.Errorf("%s: %+v", what, pod)
		}
	}
	config := all["ConfigMap warren"]["data"].(map[string]any)["warren.yaml"].(string)
	const want = "control: kubernetes\ncluster:\n- 10.0.0.0/9\nencapsulation: vxlan\nkubernetes:\n" +
		"  server: https://192.0.2.1:6443\nonExit: leave\n"
	if strings.TrimSpace(config) != strings.TrimSpace(want) {
		t.Errorf("configuration\n%s\nwant\n%s", config, want)
	}
}

// TestLeast holds that the pods get what docs/kubernetes.md says and nothing more.
func TestLeast(t *testing.T) {
	all := file(t, base+"/warren.yaml")
	pod := strict(t, all).Spec.Template.Spec
	if pod.HostPID || pod.HostIPC || !pod.HostNetwork {
		t.Error("of the host's namespaces it needs the network alone")
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		s := c.SecurityContext
		if s.Privileged != nil || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem ||
			!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(c.Resources.Requests) != 2 {
			t.Errorf("%s: %+v", c.Name, s)
		}
		if want := c.Name == "warren"; want != slices.Equal(s.Capabilities.Add, []corev1.Capability{"NET_ADMIN", "SYS_NICE"}) ||
			!want && len(s.Capabilities.Add) > 0 {
			t.Errorf("%s has the capabilities %v", c.Name, s.Capabilities.Add)
		}
	}
	var role rbacv1.ClusterRole
	text, err := yaml.Marshal(all["ClusterRole warren"])
	if err == nil {
		err = yaml.UnmarshalStrict(text, &role)
	}
	if err != nil {
		t.Fatal(err)
	}
	want := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list", "watch", "patch"}},
		{APIGroups: []string{""}, Resources: []string{"nodes/status"}, Verbs: []string{"patch"}},
	}
	if !reflect.DeepEqual(role.Rules, want) {
		t.Errorf("it may %+v, want %+v", role.Rules, want)
	}
}
