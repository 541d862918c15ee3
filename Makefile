# Everything here works on a fresh clone. Run `make help` for the list.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Go stamps the version from git; where git does not answer (an archive, a clone of another user's) it would give up.
VCS := $(if $(shell git rev-parse HEAD 2>/dev/null),true,false)
BUILD := CGO_ENABLED=0 $(GO) build -buildvcs=$(VCS) -trimpath -ldflags '-s -w'

GOLANGCI_VERSION := v2.15.0
GOLANGCI := bin/tools/golangci-lint-$(GOLANGCI_VERSION)

FUZZTIME ?= 10s
TESTTIME ?= 20m
CLUSTERTIME ?= 30m
CLUSTERTESTS ?= .
BENCH ?= .
COUNT ?= 1
SOAK ?= 1h

# What the demo, the tests and the bench execute, and the Debian package that holds it.
TOOLS := ip:iproute2 bridge:iproute2 ping:iputils-ping iperf3:iperf3 nft:nftables ethtool:ethtool tcpdump:tcpdump \
	tshark:tshark wg:wireguard-tools nsenter:util-linux iptables:iptables dnsmasq:dnsmasq-base sysctl:procps

export KEEP CONTROL
# Where Debian keeps ip and nft; a plain `su` leaves it out.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help
help: ## This list
	@echo "Warren $(VERSION)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: need-go ## Build bin/warren and bin/warren-cni
	@mkdir -p bin
	$(BUILD) -o bin/ ./cmd/...

.PHONY: demo
demo: need-root deps build ## Three nodes and their pods in network namespaces, every promise checked; KEEP=1 leaves them up, CONTROL=etcd
	@$(BUILD) -o bin/warren-demo ./internal/lab/demo
	@bin/warren-demo

.PHONY: demo-down
demo-down: need-root need-go ## Take down what `make demo KEEP=1` left up
	@$(BUILD) -o bin/warren-demo ./internal/lab/demo
	@bin/warren-demo down

.PHONY: test
test: need-root deps deps-race build ## All tests with the race detector, as root; a skipped test fails
	WARREN_REQUIRE_ROOT=1 $(GO) test -buildvcs=false -race -timeout $(TESTTIME) ./...

# CNI's own programs at the versions of go.mod: the plugins behind Warren's, what containerd calls by itself, and cnitool.
CNI := github.com/containernetworking
CNI_PLUGINS := $(foreach p,main/loopback meta/bandwidth meta/firewall meta/portmap meta/tuning,$(CNI)/plugins/plugins/$p)

.PHONY: test-runtime
test-runtime: TOOLS += containerd:containerd ctr:containerd runc:runc unshare:util-linux podman:podman
test-runtime: need-root deps build ## Pods under two real containerds, through crashes and reboots; and cnitool
	@rm -rf bin/cni && mkdir -p bin/cni
	CGO_ENABLED=0 $(GO) build -buildvcs=false -o bin/cni/ $(CNI_PLUGINS)
	CGO_ENABLED=0 $(GO) build -buildvcs=false -o bin/cnitool $(CNI)/cni/cnitool
	WARREN_REQUIRE_ROOT=1 $(GO) test -buildvcs=false -tags runtime -count 1 -timeout $(TESTTIME) -v ./internal/lab/cri

.PHONY: test-deploy
test-deploy: need-go ## The manifests for Kubernetes: valid, and the same by kubectl, kustomize and Helm
	cd deploy/check && $(GO) test -buildvcs=false -timeout $(TESTTIME) ./...

# Kubernetes at the release that internal/lab/kube/binaries requires, which says what is built, and CoreDNS. Both are
# modules of their own: nothing of Warren's depends on them. The first time takes minutes, Go's build cache the next.
KUBE_VERSION = $(shell sed -n 's,.*k8s.io/kubernetes \(v[0-9.]*\).*,\1,p' internal/lab/kube/binaries/go.mod)
KUBE_BUILD = CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath \
	-ldflags '-s -w -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION)'

.PHONY: kube
kube: need-go ## Build Kubernetes and CoreDNS into bin/kube, for `make test-cluster`; ten minutes the first time
	@mkdir -p bin/kube
	cd internal/lab/kube/binaries && $(KUBE_BUILD) -o $(CURDIR)/bin/kube/ tool
	cd internal/lab/kube/coredns && $(KUBE_BUILD) -o $(CURDIR)/bin/kube/coredns .

.PHONY: test-cluster
test-cluster: TOOLS += containerd:containerd ctr:containerd runc:runc unshare:util-linux etcd:etcd-server
test-cluster: need-root deps build kube ## Warren in a real Kubernetes, beside kube-proxy; twelve minutes; installs etcd, which is a service
	@rm -rf bin/cni && mkdir -p bin/cni
	CGO_ENABLED=0 $(GO) build -buildvcs=false -o bin/cni/ $(CNI_PLUGINS)
	WARREN_REQUIRE_ROOT=1 $(GO) test -buildvcs=false -tags cluster -count 1 -timeout $(CLUSTERTIME) -v \
		-run '$(CLUSTERTESTS)' ./internal/lab/kube

.PHONY: test-routers
test-routers: TOOLS += bird:bird2 /usr/lib/frr/zebra:frr
test-routers: need-root deps build ## Routes of `warren routes export` in BIRD and FRR; installs both, which are services
	WARREN_REQUIRE_ROOT=1 $(GO) test -buildvcs=false -tags routers -count 1 -timeout 5m -v -run TestRouters ./internal/e2e

# Each switch of the configuration's `offloads` by itself, all of them, the one that can be forced, and how workers share
# what there is to do.
OFFLOADS ?= checksum=off tso=off uso=off udpGSO=off udpGRO=off tunnelGSO=off superframes=off \
	checksum=off,tso=off,uso=off,udpGSO=off,udpGRO=off,tunnelGSO=off,superframes=off tunnelGSO=on \
	express=off moderation=off

.PHONY: test-offloads
test-offloads: need-root deps build ## The node's and the cluster's tests and the demo, with each offload off; half an hour
	@$(BUILD) -o bin/warren-demo ./internal/lab/demo
	@failed=""; for o in $(OFFLOADS); do \
		echo "== WARREN_TEST_OFFLOADS=$$o"; export WARREN_TEST_OFFLOADS=$$o WARREN_REQUIRE_ROOT=1; \
		$(GO) test -buildvcs=false -count 1 -timeout $(TESTTIME) ./internal/e2e ./node || failed+=" $$o"; \
		bin/warren-demo >bin/demo.log 2>&1 || { failed+=" demo,$$o"; cat bin/demo.log; }; \
		grep 'passed,' bin/demo.log || true; \
	done; [ -z "$$failed" ] || { echo "failed with:$$failed" >&2; exit 1; }

.PHONY: test-scale
test-scale: need-go ## What `make test` does in small or not at all: 5,000 nodes, and what one of them allocates; minutes
	$(GO) test -buildvcs=false -count 1 -timeout $(TESTTIME) -v -run 'ThousandsOfNodes|AmongMany|BytesPerPeer' \
		./control/etcd ./node ./forwarder

.PHONY: test-unit
test-unit: need-go ## The tests that need no root; the others are skipped (as root they run too)
	$(GO) test -buildvcs=false -timeout $(TESTTIME) ./...

.PHONY: lint
lint: $(GOLANGCI) ## Static checks: golangci-lint with .golangci.yml
	$(GOLANGCI) run --allow-parallel-runners ./...

$(GOLANGCI): | need-go
	@mkdir -p bin/tools
	@echo "building golangci-lint $(GOLANGCI_VERSION) (once, some minutes)"
	@GOBIN=$(CURDIR)/bin/tools $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv bin/tools/golangci-lint $@

.PHONY: fuzz
fuzz: need-go ## Every fuzz target for FUZZTIME each (default 10s)
	@GO='$(GO)' .ci/fuzz $(FUZZTIME)

# What every system of the bench needs; the program knows what else those that take part do: wg, tinc.
BENCH_TOOLS := ip:iproute2 bridge:iproute2 ping:iputils-ping iperf3:iperf3 nft:nftables ethtool:ethtool nsenter:util-linux

.PHONY: bench
bench: need-root build ## Warren beside other overlays, into bench/out: docs/benchmark.md; QUICK=1, SYSTEMS=, MTU=...
	@$(BUILD) -o bin/warren-bench ./bench/warren-bench
	@needs=$$(bin/warren-bench -needs); $(MAKE) deps TOOLS="$(BENCH_TOOLS) $$needs"
	@bin/warren-bench

.PHONY: soak
soak: need-root deps build ## Mixed load for SOAK (default 1h, at least 10s), watching what grows, breaks or is dropped
	@$(BUILD) -o bin/warren-soak ./bench/soak/warren-soak
	@bin/warren-soak -duration $(SOAK)

.PHONY: bench-go
bench-go: need-go ## Micro-benchmarks of the data path on one core, routes replaced on two; BENCH=regexp, COUNT=runs
	$(GO) test -buildvcs=false -run '^$$' -bench '$(BENCH)' -skip Replace -cpu 1 -count $(COUNT) -benchmem \
		-benchtime 200ms ./forwarder/...
	$(GO) test -buildvcs=false -run '^$$' -bench '$(BENCH)' -skip Decide -cpu 2 -count $(COUNT) -benchmem \
		-benchtime 200ms ./forwarder
	$(GO) test -buildvcs=false -run BytesPerRoute -v ./forwarder | grep 'bytes per route'

include deploy/package.mk

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin bench/out

.PHONY: need-go
need-go:
	@command -v $(GO) >/dev/null || { echo "Go is missing: install $$(awk '/^go /{print $$2}' go.mod) or newer" \
		"from https://go.dev/dl/" >&2; exit 1; }

.PHONY: need-root
need-root:
	@[ "$$(id -u)" = 0 ] || { echo "This makes network namespaces and TUN devices, which needs root:" \
		"run it as root or with sudo." >&2; exit 1; }

.PHONY: deps
deps: ## Install what demo, tests and bench execute, where it is missing (Debian, Ubuntu)
	@missing=$$(for tool in $(TOOLS); do \
		command -v "$${tool%%:*}" >/dev/null || echo "$${tool##*:}"; done | sort -u); \
	$(install-missing)

# The race detector links C code.
.PHONY: deps-race
deps-race:
	@missing=""; echo 'int main(void) { return 0; }' | gcc -include stdlib.h -x c -o /dev/null - 2>/dev/null || \
		missing="gcc libc6-dev"; \
	$(install-missing)

define install-missing
[ -z "$$missing" ] && exit 0; \
command -v apt-get >/dev/null || { echo "missing:" $$missing "- install the like of these Debian packages" >&2; exit 1; }; \
[ "$$(id -u)" = 0 ] || { echo "missing packages:" $$missing "- run as root: apt-get install" $$missing >&2; exit 1; }; \
echo "installing" $$missing; export DEBIAN_FRONTEND=noninteractive; \
apt-get update -qq </dev/null && apt-get install -y -qq --no-install-recommends $$missing </dev/null
endef
