# `make help` lists what there is. Everything works from a plain clone on a
# Debian or Ubuntu machine with Go, gcc, git and apt.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Backends of the BitTorrent library that Shoal does not use, and that need cgo.
TAGS := nosqlite noboltdb disable_libutp
GO ?= go
# Without a usable git repository there is no revision to record.
VCS := $(shell git status --porcelain >/dev/null 2>&1 && echo auto || echo false)
FUZZTIME ?= 30s
BENCH ?= -scenario cold,warm -mode perfect,shoal,direct -image 1GB-1

# Tools are built from their own modfile, once per version of tool and Go.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/shoal/bin
LINT_VERSION := $(shell awk '$$1 == "github.com/golangci/golangci-lint/v2" {print $$2}' .ci/tools/go.mod)
LINT := $(CACHE)/golangci-lint-$(LINT_VERSION)-$(shell $(GO) env GOVERSION)
HELM := $(CACHE)/helm-$(shell awk '$$1 == "helm.sh/helm/v3" {print $$2}' e2e/programs/helm/go.mod)-$(shell $(GO) env GOVERSION)
UNITTEST := $(CACHE)/helm-unittest-$(shell awk '$$1 == "github.com/helm-unittest/helm-unittest" {print $$2}' .ci/helm-unittest/go.mod)-$(shell $(GO) env GOVERSION)
PROMTOOL := $(CACHE)/promtool-$(shell awk '$$1 == "github.com/prometheus/prometheus" {print $$2}' e2e/programs/prometheus/go.mod)-$(shell $(GO) env GOVERSION)

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## Pull a 512 MiB image cold through 8 nodes on this machine (no root)
	CGO_ENABLED=0 $(GO) build -buildvcs=false -tags "$(TAGS)" -o bin/demo ./cmd/demo
	bin/demo -shoal bin/shoal

.PHONY: build
build: ## Build bin/shoal, static
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(VCS) -tags "$(TAGS)" -ldflags "-s -w" -o bin/shoal ./cmd/shoal

.PHONY: image
image: ## Make Shoal's container image, bin/image.tar, for amd64 and arm64 (without Docker; PUSH=registry/name:tag pushes it)
	for arch in amd64 arm64; do \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -trimpath -buildvcs=$(VCS) -tags "$(TAGS)" -ldflags "-s -w" -o bin/linux-$$arch/shoal ./cmd/shoal; \
	done
	CGO_ENABLED=0 $(GO) build -buildvcs=false -o bin/image ./cmd/image
	bin/image -o bin/image.tar $(if $(PUSH),-push "$(PUSH)") bin/linux-amd64/shoal bin/linux-arm64/shoal

.PHONY: test
test: vet lint unit chart rules e2e e2e-k8s ## Run everything: vet, lint, unit tests with the race detector, the chart's and the alerts', end-to-end tests (root)

.PHONY: vet
vet: ## Run go vet
	$(GO) vet -tags "$(TAGS)" ./...
	$(GO) vet -tags "$(TAGS) e2e" ./e2e/...
	cd helm/test && $(GO) vet ./...

.PHONY: lint
lint: $(LINT) ## Run golangci-lint
	"$(LINT)" run --allow-parallel-runners
	cd helm/test && "$(LINT)" run --allow-parallel-runners

.PHONY: unit
unit: ## Run the unit tests with the race detector, seeds of the fuzz targets included, and each micro-benchmark once
	CGO_ENABLED=1 $(GO) test -race -tags "$(TAGS)" ./...
	$(GO) test -tags "$(TAGS)" -run '^$$' -bench 'Piece|Prefix|Next|Large|Head|Miss|Rank|Read' -benchtime 1x ./chunker ./swarm/picker ./swarm/tracker ./swarm/members ./mirror/...

.PHONY: e2e
e2e: build ## Run the end-to-end tests on real containerd and registry (root; installs what it lacks)
	@if [ "$$(id -u)" != 0 ]; then echo "make e2e: network namespaces and containerd need root: run it as root, or run 'make vet lint unit' for the rest" >&2; exit 1; fi
	.ci/packages runc iproute2 tcpdump nftables zlib1g-dev
	CGO_ENABLED=0 $(GO) test -tags "$(TAGS) e2e" -count=1 -timeout 10m -run 'TestDiskFull|TestReal' ./chunker ./mirror/containerd
	CGO_ENABLED=0 $(GO) test -tags "$(TAGS) e2e" -count=1 -timeout 60m -v $$($(GO) list -tags e2e ./e2e/... | grep -v /e2e/kubernetes)

.PHONY: e2e-k8s
e2e-k8s: ## Run the tests of the Helm chart on a real Kubernetes of 3 nodes (root; builds it once, which takes minutes)
	@if [ "$$(id -u)" != 0 ]; then echo "make e2e-k8s: network namespaces and kubelets need root: run it as root" >&2; exit 1; fi
	.ci/packages runc iproute2 tcpdump containernetworking-plugins ipset iptables nftables
	CGO_ENABLED=0 $(GO) test -tags "$(TAGS) e2e" -count=1 -timeout 30m -v ./e2e/kubernetes

.PHONY: chart
chart: build $(HELM) $(UNITTEST) ## Test the Helm chart: lint, render, decode, schema, helm-unittest
	"$(HELM)" lint --strict --quiet --kube-version 1.36.0 helm/shoal
	set -e; for f in helm/shoal/ci/*-values.yaml; do "$(HELM)" lint --strict --quiet --kube-version 1.36.0 helm/shoal --values "$$f"; done
	"$(UNITTEST)" --strict --file 'tests/*_test.yaml' helm/shoal
	cd helm/test && HELM="$(HELM)" SHOAL="$(CURDIR)/bin/shoal" $(GO) test -count=1 ./...

.PHONY: rules
rules: $(PROMTOOL) ## Check the alerts, and run their unit tests
	"$(PROMTOOL)" check rules --lint-fatal helm/shoal/files/rules.yaml
	"$(PROMTOOL)" test rules helm/test/testdata/rules_test.yaml

.PHONY: fuzz
fuzz: ## Fuzz each target for FUZZTIME (30s)
	.ci/fuzz "$(FUZZTIME)" "$(TAGS)"

.PHONY: bench
bench: ## Measure pulls on 8 real containerd nodes with shaped links (root; BENCH="-scenario churn ...")
	.ci/packages runc iproute2
	CGO_ENABLED=0 $(GO) run -buildvcs=false -tags "$(TAGS)" ./benchmarks/pull $(BENCH)

.PHONY: docs
docs: ## Generate docs/reference/cli.md and the chart's README
	$(GO) test -tags "$(TAGS)" ./cmd/shoal -run TestReference -update
	cd helm/test && $(GO) test . -run TestReadme -update

.PHONY: clean
clean: ## Remove bin/
	rm -rf bin

# Named after their versions, so they are made when those change. It takes minutes:
# the linters are a thousand packages.
$(LINT): FROM := .ci/tools github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(HELM): FROM := e2e/programs/helm helm.sh/helm/v3/cmd/helm
$(UNITTEST): FROM := .ci/helm-unittest github.com/helm-unittest/helm-unittest/cmd/helm-unittest
$(PROMTOOL): FROM := e2e/programs/prometheus github.com/prometheus/prometheus/cmd/promtool
# Without what finds targets in a dozen clouds.
$(PROMTOOL): FLAGS := -tags remove_all_sd
$(LINT) $(HELM) $(UNITTEST) $(PROMTOOL):
	mkdir -p "$(CACHE)"
	cd $(word 1,$(FROM)) && CGO_ENABLED=0 GOFLAGS=-buildvcs=false nice $(GO) build -trimpath $(FLAGS) -ldflags "-s -w" -o "$@.new" $(word 2,$(FROM))
	mv "$@.new" "$@"
