# Every target sets up what it needs: a bare machine with Python >= 3.11, pip and apt is enough.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
ETCD_READY := $(VENV)/.etcd-ready
PROMTOOL_READY := $(VENV)/.promtool-ready
BENCH_READY := $(VENV)/.bench-ready
CHART_READY := $(VENV)/.chart-ready
DRILLS_READY := $(VENV)/.drills-ready
# Drills have TLS on every link, and servers ask each other for certificates; TLS=0 turns it off.
DRILLS_TLS := $(if $(filter 0,$(TLS)),,DRILLS_TLS=1)
BROWSER_READY := $(VENV)/.browser-ready
# The virtual environment's own programs first, so that an etcd unpacked there is found like one on PATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup check reference format test slow explore power unit demo bench chart chart-live chart-docs images drills soak upgrade browser clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) $(ETCD_READY) $(PROMTOOL_READY) ## Make .venv, find or fetch etcd and promtool; the other targets do this by themselves

$(READY): pyproject.toml .ci/setup-venv
	PYTHON="$(PYTHON)" .ci/setup-venv $(VENV)
	@touch $@

$(ETCD_READY): $(READY) .ci/setup-etcd
	.ci/setup-etcd $(VENV)
	@touch $@

$(PROMTOOL_READY): $(READY) .ci/setup-promtool
	.ci/setup-promtool $(VENV)
	@touch $@

$(BENCH_READY): $(READY) .ci/setup-bench
	.ci/setup-bench $(VENV)
	@touch $@

$(CHART_READY): $(READY) .ci/setup-chart
	.ci/setup-chart $(VENV)
	@touch $@

$(DRILLS_READY): $(READY) .ci/setup-drills
	.ci/setup-drills $(VENV)
	@touch $@

$(BROWSER_READY): $(READY) .ci/setup-browser
	.ci/setup-browser $(VENV)
	@touch $@

check: $(READY) ## Lint, format, types, layers: seconds
	ruff check .
	ruff format --check .
	mypy
	lint-imports

reference: $(READY) ## Make node/CONFIG.md and coordinator/CONFIG.md of the settings' types, METRICS.md of what is declared
	python -m copypool.serving.reference copypool_node.config:NodeConfig "a storage node" > node/CONFIG.md
	python -m copypool.serving.reference copypool_coordinator.config:Config "a coordinator" > coordinator/CONFIG.md
	PYTHONPATH=tests python -m kit.metrics_reference

format: $(READY) ## Format the code and sort its imports
	ruff check --fix .
	ruff format .

test: $(READY) $(ETCD_READY) $(PROMTOOL_READY) ## All tests: unit, contract, integration (real processes, real etcd)
	pytest

slow: $(READY) $(ETCD_READY) ## Tests that take minutes each: every disk call failing, a restore whose leader is killed 20 times
	pytest -m slow

explore: $(READY) $(ETCD_READY) ## Property tests with examples that nobody has tried, for MINUTES=10
	end=$$(($$(date +%s) + 60 * $(or $(MINUTES),10))); while [ $$(date +%s) -lt $$end ]; do \
	  pytest -q --hypothesis-profile=fresh $$(grep -rl '^from hypothesis' tests/unit tests/contract) || exit 1; done

power: $(READY) $(ETCD_READY) ## Power cuts that lose what was not fsync'd, of nodes and of etcd (root); SEEDS=200: the long run
	.ci/setup-power
	PATH="$$PATH:/usr/sbin:/sbin" COPYPOOL_POWER_SEEDS=$(or $(SEEDS),4) pytest tests/power

unit: $(READY) $(PROMTOOL_READY) ## Unit tests alone: seconds
	pytest tests/unit

demo: $(READY) $(ETCD_READY) ## The main job on a real cluster of this machine, in .demo: under 3 minutes
	copypool dev demo --dir .demo

bench: $(READY) $(ETCD_READY) $(BENCH_READY) ## Speed beside peers and against bounds, and README's table: under 25 minutes; BENCH=--quick: 2
	PYTHONPATH=tests python -m bench $(BENCH)

chart: $(CHART_READY) images ## The Helm chart: schema, rendering, its life on an API server, its pods as real containers
	pytest tests/chart --ignore tests/chart/live

chart-live: $(CHART_READY) ## The chart on the cluster of KUBECONFIG, in a namespace of its own; IMAGES=registry/copypool-%s:tag
	pytest tests/chart/live

chart-docs: $(CHART_READY) ## helm/copypool/README.md, from values.yaml
	PYTHONPATH=tests python -m chart.docs

images: $(READY) $(ETCD_READY) ## Container images of node and coordinator, with or without a registry; BASE_IMAGE=...
	.ci/setup-docker start
	.ci/build-images $(VENV)

drills: images $(DRILLS_READY) ## Faults on a cluster in containers, and the availability table; root. SHORT=1, TLS=0, TABLE=1 (writes it down)
	$(DRILLS_TLS) $(if $(TABLE),DRILLS_TABLE=1) pytest tests/drills -o timeout=600 $(if $(SHORT),-m short) $(DRILLS)

upgrade: images $(DRILLS_READY) ## From UPGRADE_FROM=commit (the last tag, or HEAD^) to today under load, and back; root
	UPGRADE_FROM=$(UPGRADE_FROM) $(DRILLS_TLS) pytest tests/drills/test_upgrade.py -o timeout=600

soak: images $(DRILLS_READY) ## Random faults for MINUTES=30 from SEED=1, judged as a whole; root
	$(DRILLS_TLS) PYTHONPATH=tests python -m drills.soak --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1) $(SOAK)

browser: $(READY) $(ETCD_READY) $(BROWSER_READY) ## The dashboard in a real Chromium on a real cluster: under 2 minutes
	pytest tests/browser

clean: ## Stop what `copypool dev` runs here, then remove .venv, .dev, .demo and caches
	@for dir in .dev .demo; do \
	  if [ -d $$dir ] && [ -x $(VENV)/bin/copypool ]; then copypool dev down --dir $$dir --wipe; fi; done
	rm -rf $(VENV) .dev .demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find client node coordinator tests -name __pycache__ -type d -prune -exec rm -rf {} +
