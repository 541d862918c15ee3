// Package check holds that what deploy/ has for Kubernetes is what Kubernetes takes, and that the manifest, the
// kustomize base and the Helm chart say the same.
package check
