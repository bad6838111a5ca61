# SPDX-License-Identifier: Apache-2.0
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
# What is imported is compiled once, and not beside the sources: dozens of programs start in a run.
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache
unexport PYTHONDONTWRITEBYTECODE
# Two at a time: much of a test is waiting. Tests of one file share their hosts, so they stay together.
BY_FILE := -n 2 --dist loadfile
# With limits of time that are the product's own, or those of clients under load.
ALONE := tests/vm/test_faults.py tests/vm/test_matrix.py
ALONE_HOST := tests/host/test_faults.py
SEED ?= 1
RUNS ?= 1
UV ?= uv
KILL ?= host
DB ?= postgresql
RELEASE ?= all
ROUNDS ?= 10
BY ?= kill
CELLS ?= all
UNTIL ?= reboot

FUZZ_S ?= 3600
FUZZ_RUNS ?=

.PHONY: help screenshots setup venv demo cast soak matrix machines vagrant-box vagrant-demo test check quick lint lock bench fuzz dist dist-test clean

help:
	@echo 'make demo [SEED=n] [RUNS=n] [KILL=host|qemu|link] [DB=postgresql|mariadb] [RELEASE=all|commit] [PLAIN=1]'
	@echo '             kill the host of a protected database VM under load; see that no client noticed'
	@echo 'make cast    the same, recorded as docs/demo.cast'
	@echo 'make soak [ROUNDS=n] [BY=kill|switchover]'
	@echo '             fail over (or move), rejoin, reprotect, and back again, under load: nothing lost, no connection reset'
	@echo 'make matrix [CELLS=all|ci|FAULT/PHASE,...] [KEEP=1]'
	@echo '             every fault in every phase (about 50 minutes); writes docs/fault-matrix.md'
	@echo 'make machines [UNTIL=boot|install|protect|kill|rejoin|reboot]'
	@echo '             two hosts that are VMs of their own (Debian 13 with its kernel, systemd, AppArmor): a power failure, and back'
	@echo 'make vagrant-demo'
	@echo '             the same hosts under Vagrant, where there is one with libvirt and KVM: vagrant/README.md'
	@echo 'make test    everything: check, then the tests that need namespaces and QEMU (root; installs Debian packages)'
	@echo 'make check   linters, mypy, and the tests that need nothing but this folder (no root)'
	@echo 'make lock    pin the newest releases of all that .venv holds (needs uv)'
	@echo 'make bench [QUICK=1]'
	@echo '             what protection costs PostgreSQL, as ratios of one run, in build/bench/report.json (QUICK: five minutes);'
	@echo '             then what else is timed, apart from the tests: figures of a shared machine prove nothing'
	@echo 'make fuzz [FUZZ_S=seconds|FUZZ_RUNS=n]'
	@echo '             feed every parser with mutations: so long in all, or n inputs each; test does it for 60 s'
	@echo 'make screenshots'
	@echo '             pictures of the console before real hosts, in docs/images'
	@echo 'make dist    the wheel and the .deb for Debian 12 and 13, in dist/'
	@echo 'make dist-test'
	@echo '             the .deb in clean Debians, made by mmdebstrap (root; the first time it takes minutes)'
	@echo 'make venv    .venv alone; check does it first'
	@echo 'make setup   system packages and .venv (root); demo, soak, matrix, test and bench do it first'
	@echo 'make clean   remove what was built, and labs that were left behind'

setup:
	@tools/setup.sh

venv:
	@tools/venv.sh

demo: setup
	@$(PYTHON) -m tools.demo --seed $(SEED) --runs $(RUNS) --kill $(KILL) --db $(DB) --release $(RELEASE) $(if $(PLAIN),--plain)

cast: setup
	@$(PYTHON) -m tools.cast

soak: setup
	@$(PYTHON) -m tools.soak --rounds $(ROUNDS) --by $(BY)

matrix: setup
	@$(PYTHON) -m tools.matrix --cells '$(CELLS)' $(if $(KEEP),--keep)

machines: setup
	@$(PYTHON) -m tools.machines --until $(UNTIL)

vagrant-box: setup
	@$(PYTHON) -m tools.machines.box

vagrant-demo: vagrant-box
	@vagrant/demo.sh

test: setup lint
	REMUSDB_SCHEDULES=800 $(PYTEST) -n 2 tests/unit tests/model
	$(PYTHON) -m tests.fuzz --seconds 60 --runs 20000 --seed 1
	$(PYTEST) $(BY_FILE) tests/host $(ALONE_HOST:%=--ignore=%)
	$(PYTEST) $(ALONE_HOST)
	$(PYTEST) $(BY_FILE) tests/hostile
	$(PYTEST) tests/machines
	$(PYTEST) $(BY_FILE) --no-loadscope-reorder --durations=15 -o timeout=400 tests/vm $(ALONE:%=--ignore=%)
	$(PYTEST) -o timeout=400 $(ALONE)

# Both at once: much of a test is waiting.
check: venv
	@$(MAKE) --no-print-directory -j 2 lint quick

quick: venv
	$(PYTEST) -q -n 4 -m 'not slow' tests/unit tests/model

lint: venv
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/shellcheck $$(git grep -lI '^#!.*sh$$')
	.venv/bin/codespell $$(git ls-files ':!*.zst' ':!*.min.js' ':!requirements.lock')

lock:
	UV_CUSTOM_COMPILE_COMMAND='make lock' $(UV) pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes \
		--extra lab --extra setup --extra console --group dev -o requirements.lock pyproject.toml

fuzz: venv
	$(PYTHON) -m tests.fuzz $(if $(FUZZ_RUNS),--runs $(FUZZ_RUNS),--seconds $(FUZZ_S))

bench: setup
	@$(PYTHON) -m tools.bench $(if $(QUICK),--quick)
	$(if $(QUICK),,$(PYTEST) tests/bench -W ignore::ResourceWarning -o log_cli=true -o log_cli_level=INFO)

screenshots: setup
	REMUSDB_PICTURES=docs/images $(PYTEST) -o timeout=400 tests/vm/test_console.py

dist: venv
	@$(PYTHON) -m tools.dist

dist-test: setup
	$(PYTEST) tests/dist
	REMUSDB_ALL_DEBIANS=1 $(PYTEST) tests/host/test_remusdb_mark.py

clean:
	@[ ! -x $(PYTHON) ] || $(PYTHON) -c 'from tools.lab.sweep import sweep; sweep()'
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
