# muslin: `make` lists the targets.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 15s
FUZZSIDE ?= 2
SOAK     ?= 30m
V        ?= -v
RUN      ?=
SUDO     := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# One way to compile for all that is built, tested and linted, so that each package is compiled once.
export CGO_ENABLED = 0
export GOFLAGS    += -trimpath
AS_ROOT := $(SUDO) env "PATH=$$PATH" "HOME=$$HOME" CGO_ENABLED=$$CGO_ENABLED "GOFLAGS=$$GOFLAGS"

# What the demo and the tests need beside Go, as Debian packages.
DEMO_PACKAGES := iproute2 iperf3
TEST_PACKAGES := $(DEMO_PACKAGES) iputils-ping tcpdump tshark iptables nftables etcd-server etcd-client ethtool util-linux procps sockperf wireguard-go wireguard-tools gcc libc6-dev dbus-daemon python3-dbus python3-gi tmux

# What the benchmark measures with, and the rivals it measures beside, where `make bench-rivals` installed them.
BENCH_PACKAGES := $(DEMO_PACKAGES) ethtool sockperf etcd-server wireguard-tools
RIVAL_PACKAGES := nebula tinc openvpn
BENCH ?=

# Kernels: what bench/vm needs to boot Debian's, which of them there are, and which older ones bench/oldkernel plays.
VM_PACKAGES := $(TEST_PACKAGES) qemu-system-x86 busybox-static kmod xz-utils
KERNELS     := 5.10 6.1 6.12
KERNEL      ?= 5.10
VM          ?=
PROFILES    := 3.2 3.10 4.4 4.18 5.4
PROFILE     ?= 3.10

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the static binary, bin/muslin
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/muslin ./cmd/muslin

define install
	@if ! dpkg -s $(1) >/dev/null 2>&1; then \
	  $(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(1); fi
endef

.PHONY: deps-demo
deps-demo: ## Install the Debian packages that the demo needs
	$(call install,$(DEMO_PACKAGES))

# Debian starts the etcd that it installs, on the very port that --embedded-etcd takes. The tests start their
# own, so one that this installs does not stay on.
.PHONY: deps
deps: ## Install the Debian packages that demo and test need
	@had=$$(dpkg -s etcd-server 2>/dev/null); $(MAKE) -s deps-test deps-firewalld; \
	  if [ -z "$$had" ] && [ -d /run/systemd/system ]; then $(SUDO) systemctl disable -q --now etcd; fi

.PHONY: deps-test
deps-test:
	$(call install,$(TEST_PACKAGES))

# Unpacked, not installed: Debian starts firewalld where it is installed, and it would be this machine's firewall.
FIREWALLD := $(CURDIR)/build/firewalld
.PHONY: deps-firewalld
deps-firewalld: ## Fetch Debian's firewalld for the tests, without installing it
	@[ -d $(FIREWALLD) ] || { dir=$$(mktemp -d) && chmod 755 $$dir && \
	  (cd $$dir && set -- firewalld python3-firewall python3-nftables && { apt-get download -q $$@ || { $(SUDO) apt-get update -q && apt-get download -q $$@; }; } && \
    for deb in *.deb; do dpkg -x $$deb root || exit 1; done) && \
	  mkdir -p build && mv $$dir/root $(FIREWALLD) && rm -r $$dir; }

.PHONY: demo
demo: deps-demo build ## Three hosts on this machine: ping and throughput between all pods (needs root)
	$(SUDO) bin/muslin demo

.PHONY: test
test: deps build test-unit test-race test-e2e ## Every test: unit, race, fuzz seeds, end-to-end, interoperability

# The suites with the built binary need the machine to themselves, so they are no part of the others. Those that wait most (for
# the kernel's locks, for etcd) go first: what computes has the processors meanwhile.
SUITES := doctor e2e fault metrics rescue restart scale soak systemd web
UNIT   = ./tunnel/host ./lease/etcd ./bench/link $$($(GO) list ./... | grep -v $(SUITES:%=-e /bench/%$$))

.PHONY: test-unit
test-unit: ## Unit tests, allocation asserts and fuzz seeds among them (those that open devices need root)
	$(AS_ROOT) $(GO) test -p 4 -count=1 -run '$(RUN)' $(UNIT)

# The detector waits a second at the end of each process, in case that another thread has something to report: these have joined
# theirs. What go vet says of the tests it has said to test-unit.
.PHONY: test-race
test-race: ## The same under the race detector
	$(AS_ROOT) CGO_ENABLED=1 GORACE=atexit_sleep_ms=100 $(GO) test -p 4 -count=1 -vet=off -race -run '$(RUN)' $(UNIT)

.PHONY: test-fuzz
test-fuzz: ## Every fuzz target over its seeds and kept corpus, as test-unit has it too
	$(GO) test -count=1 -vet=off -run '^Fuzz' $$(bench/fuzz/run.sh --list | sed 's,^,./,; s, .*,,' | sort -u)

.PHONY: test-e2e
test-e2e: build ## End-to-end and interoperability, in network namespaces, with the built binary
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin MUSLIN_FIREWALLD=$$([ ! -d $(FIREWALLD) ] || echo $(FIREWALLD)) \
	  $(GO) test -parallel 4 -count=1 -timeout 9m -run '$(RUN)' ./bench/e2e

.PHONY: matrix
matrix: deps-test build ## Every backend between every kind of nodes; writes docs/matrix.md (root)
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin MUSLIN_MATRIX=$(CURDIR)/docs/matrix.md \
	  $(GO) test -count=1 -timeout 5m -v -run TestMatrix ./bench/e2e

.PHONY: deps-systemd
deps-systemd:
	$(call install,$(TEST_PACKAGES) systemd)

.PHONY: test-systemd
test-systemd: deps-systemd build ## The systemd unit under a real systemd: rights, install, crashes and what they cost (needs root)
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin $(GO) test -count=1 -timeout 10m $(V) -run '$(RUN)' ./bench/systemd

# Apart from what the other tests need: a browser is a large thing to install for who does not touch the page.
.PHONY: deps-web
deps-web:
	$(call install,$(TEST_PACKAGES) chromium)

.PHONY: test-web
test-web: deps-web build ## The page of --web in a real browser: a lab, 500 peers, keyboard, axe-core (needs root)
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin $(GO) test -count=1 -timeout 10m $(V) -run '$(RUN)' ./bench/web

.PHONY: test-fault
test-fault: deps-test build ## Faults of etcd and of leases, floods, restarts; every packet is counted (needs root)
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin $(GO) test -count=1 -p 1 -timeout 15m $(V) -run '$(RUN)' ./bench/fault ./bench/restart

# flannel is a Go module, with C in its udp backend.
FLANNEL := v0.26.7
build/flanneld:
	mkdir -p build && GOBIN=$(CURDIR)/build CGO_ENABLED=1 $(GO) install github.com/flannel-io/flannel@$(FLANNEL) && mv build/flannel $@

.PHONY: test-rescue
test-rescue: deps-test build build/flanneld ## Rescue and undo of flannel nodes under traffic, with a real flanneld, broken in several ways (needs root)
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin MUSLIN_FLANNELD=$(CURDIR)/build/flanneld \
	  $(GO) test -count=1 -timeout 10m $(V) -run '$(RUN)' ./bench/rescue

.PHONY: test-doctor
test-doctor: deps-test build ## Every fault that muslin doctor is to find, injected, and its first finding compared (needs root)
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin $(GO) test -parallel 1 -count=1 -timeout 10m $(V) -run '$(RUN)' ./bench/doctor

# Debian starts the Prometheus that it installs; the tests start their own, so one that this installs does not stay on.
.PHONY: deps-metrics
deps-metrics: deps-test
	@had=$$(dpkg -s prometheus 2>/dev/null); dpkg -s prometheus >/dev/null 2>&1 || { $(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends prometheus; }; \
	  if [ -z "$$had" ] && [ -d /run/systemd/system ]; then $(SUDO) systemctl disable -q --now prometheus; fi

.PHONY: test-metrics
test-metrics: deps-metrics build ## Metrics, dashboard and alerts under a real Prometheus, half a minute (needs root)
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin $(GO) test -count=1 -timeout 5m $(V) -run '$(RUN)' ./bench/metrics

.PHONY: test-long
test-long: build ## Files of 1 GiB both ways, each backend and kernel VXLAN, SHA-256 compared (needs root)
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin MUSLIN_LONG=1 $(GO) test -count=1 -timeout 30m -v -run TestBigFiles ./bench/e2e

# Nothing here needs root: the guest has its own.
.PHONY: vm
vm: deps-vm build ## The end-to-end suite on Debian's Linux KERNEL (5.10, 6.1, 6.12) in QEMU, emulated (flags in VM="...")
	$(GO) run ./bench/vm $(VM) $(KERNEL)

.PHONY: vm-all
vm-all: deps-vm build ## The same on each of them, one after the other
	$(GO) run ./bench/vm $(VM) $(KERNELS)

.PHONY: deps-vm
deps-vm:
	$(call install,$(VM_PACKAGES))

# The suite runs muslin by the name of this script; the tools beside it see the kernel as it is.
define oldkernel
	@mkdir -p build/oldkernel/$(1)
	@printf '#!/bin/sh\nexec %s --profile $(1) -- %s "$$@"\n' $(CURDIR)/bin/oldkernel $(CURDIR)/bin/muslin >build/oldkernel/$(1)/muslin
	@chmod 755 build/oldkernel/$(1)/muslin
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/build/oldkernel/$(1)/muslin MUSLIN_OLDKERNEL=$(1) MUSLIN_FIREWALLD=none \
	  $(GO) test -count=1 -timeout 15m -run '$(RUN)' ./bench/e2e

endef

.PHONY: bin/oldkernel
bin/oldkernel:
	$(GO) build -o bin/oldkernel ./bench/oldkernel

.PHONY: test-oldkernel
test-oldkernel: deps-test build bin/oldkernel ## The end-to-end suite with muslin refused what Linux PROFILE (3.2, 3.10, 4.4, 4.18, 5.4) lacks
	$(call oldkernel,$(PROFILE))

.PHONY: test-oldkernel-all
test-oldkernel-all: deps-test build bin/oldkernel ## The same for each of them
	$(foreach p,$(PROFILES),$(call oldkernel,$(p)))

.PHONY: scale
scale: deps-test build ## A daemon among 10,000 leases and etcd under 500 daemons, in at most 10 minutes (root; nothing else on the machine)
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin $(GO) test -count=1 -timeout 10m -v ./bench/scale

.PHONY: soak
soak: deps-test build ## Traffic, churn and restarts for SOAK (30m): what the daemons take stays flat (root)
	mkdir -p bench/results
	$(AS_ROOT) MUSLIN_BIN=$(CURDIR)/bin/muslin SOAK=$(SOAK) SOAK_OUT=$(CURDIR)/bench/results/soak.json \
	  $(GO) test -count=1 -timeout 0 -v ./bench/soak
	$(GO) run ./bench/plot bench/results

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (15s), FUZZSIDE (2) side by side
	GO="$(GO)" bench/fuzz/run.sh $(FUZZTIME) $(FUZZSIDE)

.PHONY: fuzz-long
fuzz-long: ## Run each fuzz target for 5 minutes, two side by side: an hour and more
	GO="$(GO)" bench/fuzz/run.sh 5m 2

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, other architectures, and govulncheck where its data can be had
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@for arch in arm64 386 arm riscv64; do echo "build for $$arch"; GOARCH=$$arch $(GO) build -o /dev/null ./cmd/muslin || exit 1; done
	@out=$$($(GO) tool govulncheck ./... 2>&1); status=$$?; case "$$out" in \
	  *"fetching vulnerabilities"*) echo "govulncheck: its database cannot be reached from here; left out" ;; \
	  *) echo "$$out"; exit $$status ;; esac

.PHONY: bench
bench: deps-bench build bin/wireguard-go ## muslin beside the kernel and every rival that is installed, 5 rounds (root; flags in BENCH="...")
	$(SUDO) bin/muslin bench lab --out bench/results --rival wireguard-go=bin/wireguard-go $(BENCH)
	$(GO) run ./bench/plot bench/results

.PHONY: bench-check
bench-check: deps-bench build bin/wireguard-go ## Measure what has a target, and fail below a "must" (root; nothing else on the machine)
	$(SUDO) bin/muslin bench lab --check --rival wireguard-go=bin/wireguard-go $(BENCH)

# The program of the module whose engine muslin has, in the same version: Debian's is years older.
.PHONY: bin/wireguard-go
bin/wireguard-go:
	$(GO) build -o bin/wireguard-go golang.zx2c4.com/wireguard

.PHONY: bench-micro
bench-micro: ## Go benchmarks of the data path's rooms against the committed baseline
	bench/micro/run.sh

.PHONY: bench-rivals
bench-rivals: ## Install the rivals that Debian has
	$(call install,$(RIVAL_PACKAGES))

.PHONY: deps-bench
deps-bench:
	$(call install,$(BENCH_PACKAGES))

.PHONY: check
check: lint test ## What a change must pass: lint and test

# Where install puts what, below DESTDIR. systemd looks below /usr/local/lib as well as below /usr/lib.
PREFIX  ?= /usr/local
DESTDIR ?=
BINARY  ?= bin/muslin
define INSTALLED
$(PREFIX)/bin/muslin
$(PREFIX)/lib/systemd/system/muslin.service
$(PREFIX)/lib/sysusers.d/muslin.conf
$(PREFIX)/lib/tmpfiles.d/muslin.conf
$(PREFIX)/share/doc/muslin/muslin.env
endef

.PHONY: install
install: ## Install binary, systemd unit, user and an example of settings below PREFIX (/usr/local); root
	@[ -x $(BINARY) ] || { echo "there is no $(BINARY): run make build first"; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/muslin
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' docs/examples/muslin.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/muslin.service
	chmod 644 $(DESTDIR)$(PREFIX)/lib/systemd/system/muslin.service
	install -D -m 644 docs/examples/muslin.sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/muslin.conf
	install -D -m 644 docs/examples/muslin.tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/muslin.conf
	install -D -m 644 docs/examples/muslin.env $(DESTDIR)$(PREFIX)/share/doc/muslin/muslin.env
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || { systemd-sysusers muslin.conf && systemd-tmpfiles --create muslin.conf && systemctl daemon-reload; }
	@[ -n "$(DESTDIR)" ] || echo "settings go into /etc/muslin.env (an example: $(PREFIX)/share/doc/muslin/muslin.env); then: systemctl enable --now muslin"

.PHONY: uninstall
uninstall: ## Stop the daemon and remove what install installed; state, settings and the user stay (root)
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl disable -q --now muslin 2>/dev/null || true
	rm -f $(addprefix $(DESTDIR),$(INSTALLED))
	@rmdir $(DESTDIR)$(PREFIX)/share/doc/muslin 2>/dev/null || true
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload

.PHONY: clean
clean: ## Remove what make built
	rm -rf bin build
