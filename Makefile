# Strongroom. `make run` to see it, `make test` to believe it.
SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 20s

.PHONY: run build client-ts test bench fuzz lint fmt clean

run: build ## build and start Strongroom with the embedded database in ./.strongroom
	bin/strongroom dev --data .strongroom

build: ## one static binary: bin/strongroom
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/strongroom ./cmd/strongroom

client-ts: ## the TypeScript client, generated and compiled anew from the OpenAPI document
	scripts/client-ts

test: ## everything: formatting, vet, staticcheck, all tests under the race detector, both databases, the real binary
	scripts/test

bench: ## every benchmark beside its baseline, then the ratios
	scripts/bench

fuzz: ## each fuzz target for FUZZTIME
	scripts/fuzz $(FUZZTIME)

lint: ## formatting, vet and staticcheck
	scripts/lint

fmt:
	gofmt -w $$(git ls-files '*.go')

clean:
	rm -rf bin
