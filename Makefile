# Quire's everyday commands. `make help` lists them.

GO    ?= go
BUF   := $(GO) tool -modfile=tools/go.mod buf
LINT  := $(GO) tool -modfile=tools/go.mod golangci-lint
FUZZ  ?= 60s
LONG  ?= 100000
PROPERTIES := Prop|Undisturbed|CacheNews$$|EveryTokenIsToldOnce|Lookup$$

# No builder's paths in binaries and their traces, and a build cache that any checkout shares.
export GOFLAGS ?= -trimpath
# go-nvml binds deprecated calls too; their warnings would bury ours.
export CGO_CFLAGS ?= -O2 -g -Wno-deprecated-declarations

.DEFAULT_GOAL := help
.PHONY: help run build test long check bench chaos generate fuzz clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/quire
	@echo "building bin/quire (the first build compiles the kernels and takes a minute or two)"
	@$(GO) build -o bin/quire ./cmd/quire

run: build ## serve a model on this machine: HTTP on :8000, gRPC on :8001
	@exec bin/quire dev --pull

test: ## run every test
	$(GO) test -timeout 20m ./...

long: ## the KV cache's and the engine's properties over LONG=100000 random cases each
	$(GO) test -timeout 24h -run '$(PROPERTIES)' ./kvcache ./kvcache/tier ./worker ./worker/engine -rapid.checks=$(LONG)

check: ## vet, lint, formatting, API lint, and no drift in generated code
	$(GO) vet ./...
	$(LINT) run ./...
	$(BUF) lint
	$(BUF) generate
	git diff --exit-code -- proto

bench: build ## measure speed beside llama.cpp and vLLM, and the parts; TRACES=folder adds what traces say
	$(GO) run ./bench/compare $(if $(TRACES),-azure $(TRACES)/AzureLLMInferenceTrace_conv.csv -mooncake $(TRACES)/mooncake_synthetic_trace.jsonl)
	$(GO) run ./bench/control

chaos: build ## break a cluster of real processes for ten minutes with each model; see docs/chaos.md
	$(GO) test ./test/chaos -run TestChaos -count 1 -v -timeout 30m -args -chaos.binary $(CURDIR)/bin/quire -chaos.duration 10m -chaos.model tiny
	$(GO) test ./test/chaos -run TestChaos -count 1 -v -timeout 30m -args -chaos.binary $(CURDIR)/bin/quire -chaos.duration 10m -chaos.model smollm2-135m

generate: ## regenerate the protobuf code
	$(BUF) generate

fuzz: ## fuzz every parser, FUZZ=60s each
	@$(GO) test -list '^Fuzz' ./... | \
	  awk '/^Fuzz/ {t[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, t[i]; n = 0}' | \
	  while read -r package target; do \
	    echo "$$package $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZ) "$$package" || exit 1; \
	  done

clean: ## remove what was built
	rm -rf bin
