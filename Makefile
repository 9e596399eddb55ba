# Each target does all of its own set-up: a machine with Python ≥ 3.11, pip and make is enough.

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$p"; break; }; done)
endif
ifeq ($(strip $(PYTHON)),)
$(error no Python 3.11 or newer on PATH: install one, or run `make PYTHON=/path/to/python`)
endif
ifndef SEED
SEED := $(shell $(PYTHON) -c 'import random; print(random.SystemRandom().getrandbits(32))')
endif

DEV := -e ".[cli,dev]"
CORE_ONLY := -e ".[cli,test]"
CORE_AND_PLOTS := -e ".[cli,plot,test]"
BIN := .venv/bin
READY := .venv/.ready
OLDEST := .venv-oldest
BENCH := .venv-bench
SERVERS := .venv-servers
# The tests fail without them; what system servers there are is found out when they are tested.
PORTABLE := moto,gcs,webdav
TORCH := .venv-torch
# A second environment, where a test needs two that differ: only this library is another one.
OLD_NUMPY := $(TORCH)/numpy-1.26
KERAS := .venv-keras
FUZZ := .venv-fuzz
KERAS_OLD_NUMPY := $(KERAS)/numpy-1.26
OLD_KERAS := 3.9.0 3.12.0
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
NOT_RUN := .cache/not-run.txt
QUICK := not slow and not server and not gpu and not soak
# Tests share the cores; tests/conftest.py says which of them stay in one process.
SPREAD := -n auto --maxprocesses 4
# What says whether the core works on another Python or with other dependencies.
CORE := $(wildcard tests/unit tests/vectors tests/properties)
TYPED := ckptfmt adapters $(wildcard tests/typing/*.py examples/*.py)

# venv(folder, Python, arguments to pip install). A system Python may come without ensurepip;
# its own pip can fill the environment then.
define venv
	rm -rf $(1)
	$(2) -m venv $(1) >/dev/null 2>&1 || { rm -rf $(1) \
		&& $(2) -m venv --without-pip $(1) && $(2) -m pip --python $(1)/bin/python install -q pip; }
	$(1)/bin/python -m pip install --quiet $(3)
	touch $(1)/.ready
endef

.PHONY: help demo test test-quick test-oldest test-torch test-keras test-keras-versions test-pythons test-servers soak soak-core soak-torch soak-keras soak-servers fuzz bench bench-curves bench-codec bench-torch bench-keras bench-same lint format clean
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PRECIOUS: .venv-3.%/.ready

help:
	@echo "make demo          train, kill, resume bit-identically (under two minutes)"
	@echo "make test          everything that must pass before a change is merged"
	@echo "make test-quick    the tests alone, in the environment that is there"
	@echo "make test-oldest   the core on the oldest supported dependencies"
	@echo "make test-torch    the PyTorch adapter, in an environment with torch"
	@echo "make test-keras    the Keras adapter on each of its backends, in an environment with them"
	@echo "make test-keras-versions  models go between releases of Keras"
	@echo "make test-pythons  the core on every other Python found"
	@echo "make test-servers  tests against servers that need more than pip; installs them"
	@echo "make soak          full counts, a new seed each time (make soak SEED=N repeats)"
	@echo "make soak-servers  writers, readers, a collector and kills on one store (MINUTES=30 ONLY=local)"
	@echo "make fuzz          each parser of foreign formats under a fuzzer that coverage guides"
	@echo "make bench         the benchmark table"
	@echo "make bench-curves  how times grow with bytes, arrays and checkpoints"
	@echo "make bench-codec   what compression saves and costs"
	@echo "make bench-torch   a PyTorch run beside torch's own ways to save it"
	@echo "make bench-same    what the environment record, a probe and its replay cost"
	@echo "make bench-keras   a Keras run beside Keras' own ways to save it (BACKEND=jax)"
	@echo "make lint          ruff, ruff format, mypy --strict"

$(READY): pyproject.toml
	$(call venv,.venv,$(PYTHON),$(DEV))

$(FUZZ)/.ready: pyproject.toml
	$(call venv,$(FUZZ),$(PYTHON),-e ".[h5]" atheris)

# Apart from the clients: neither side then decides about the versions of the other.
$(SERVERS)/.ready: tests/servers/requirements.txt
	$(call venv,$(SERVERS),$(PYTHON),-r tests/servers/requirements.txt)

# The peers have environments of their own; one that cannot be installed is left out.
$(BENCH)/.ready: pyproject.toml $(wildcard tests/bench/requirements/*.txt)
	$(call venv,$(BENCH),$(PYTHON),-e ".[plot]")
	$(BENCH)/bin/python -m tests.bench.environments $(BENCH)/peers

$(TORCH)/.ready: pyproject.toml
	$(call venv,$(TORCH),$(PYTHON),torch==2.13.0)
	$(TORCH)/bin/python -m pip install --quiet -e ".[cli,dev]" torchdata
	$(TORCH)/bin/python -m pip install --quiet --no-deps --target $(OLD_NUMPY) numpy==1.26.4

# torch first, and alone: its builds for the CPU are what the others then find installed.
$(KERAS)/.ready: pyproject.toml
	$(call venv,$(KERAS),$(PYTHON),torch==2.13.0)
	$(KERAS)/bin/python -m pip install --quiet keras jax tensorflow-cpu
	$(KERAS)/bin/python -m pip install --quiet -e ".[cli,dev]"
	$(KERAS)/bin/python -m pip install --quiet --no-deps --target $(KERAS_OLD_NUMPY) numpy==1.26.4

$(OLDEST)/.ready: pyproject.toml constraints/oldest.txt
	$(call venv,$(OLDEST),$(PYTHON),-c constraints/oldest.txt $(CORE_AND_PLOTS))

demo: $(READY)
	$(BIN)/python examples/digits_resume.py

lint: $(READY)
	@failed=""; \
	$(BIN)/ruff check . || failed="$$failed ruff-check"; \
	$(BIN)/ruff format --check . || failed="$$failed ruff-format"; \
	$(BIN)/mypy --strict $(TYPED) || failed="$$failed mypy"; \
	if test -n "$$failed"; then echo "lint failed:$$failed"; exit 1; fi

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every part runs, whatever became of the one before: one look tells all that is wrong.
test: $(READY) $(SERVERS)/.ready
	@mkdir -p $(dir $(NOT_RUN)) && rm -f $(NOT_RUN) && touch $(NOT_RUN)
	@failed=""; \
	$(MAKE) --no-print-directory lint || failed="$$failed lint"; \
	$(MAKE) --no-print-directory test-oldest || failed="$$failed test-oldest"; \
	echo "$(BIN)/python -m pytest -m '$(QUICK)' $(SPREAD) -rs"; \
	CKPTFMT_NOT_RUN=$(NOT_RUN) CKPTFMT_SERVERS=$(PORTABLE) $(BIN)/python -m pytest -m "$(QUICK)" $(SPREAD) -rs \
		|| failed="$$failed pytest"; \
	$(MAKE) --no-print-directory test-torch || failed="$$failed test-torch"; \
	$(MAKE) --no-print-directory test-keras || failed="$$failed test-keras"; \
	echo; echo "Not run by make test, and why (number of tests first):"; \
	sort -u $(NOT_RUN); test -s $(NOT_RUN) || echo "    nothing: every test ran"; \
	if test -n "$$failed"; then echo "FAILED:$$failed"; exit 1; fi; \
	echo "passed: lint, test-oldest, pytest, test-torch, test-keras"

test-quick: $(READY)
	$(BIN)/python -m pytest -m "$(QUICK) and not wheel" $(SPREAD)

test-oldest: $(OLDEST)/.ready
	CKPTFMT_NOT_RUN=$(NOT_RUN) $(OLDEST)/bin/python -m pytest -m "$(QUICK)" $(SPREAD) -q -rs $(CORE)

# An environment of its own: the others prove that nothing needs a framework.
test-torch: $(TORCH)/.ready
	$(TORCH)/bin/mypy --strict adapters/ckptfmt_torch
	CKPTFMT_NOT_RUN=$(NOT_RUN) CKPTFMT_OLD_NUMPY=$(abspath $(OLD_NUMPY)) \
		$(TORCH)/bin/python -m pytest -m "$(QUICK)" $(SPREAD) -q -rs tests/adapters/torch

# One backend a process: Keras chooses it when it is imported.
test-keras: $(KERAS)/.ready
	$(KERAS)/bin/mypy --strict adapters/ckptfmt_keras
	@failed=""; for backend in torch jax tensorflow; do \
		echo "KERAS_BACKEND=$$backend pytest tests/adapters/keras"; \
		KERAS_BACKEND=$$backend TF_CPP_MIN_LOG_LEVEL=3 CKPTFMT_NOT_RUN=$(NOT_RUN) \
			CKPTFMT_OLD_NUMPY=$(abspath $(KERAS_OLD_NUMPY)) \
			$(KERAS)/bin/python -m pytest -m "$(QUICK)" $(SPREAD) -q -rs tests/adapters/keras \
			|| failed="$$failed $$backend"; \
	done; if test -n "$$failed"; then echo "failed on:$$failed"; exit 1; fi

# Only Keras is another one: each older release lies in a folder of its own.
test-keras-versions: $(foreach v,$(OLD_KERAS),$(KERAS)/keras-$(v)/.ready)
	KERAS_BACKEND=torch CKPTFMT_OLD_KERAS=$(subst $(SPACE),:,$(foreach v,$(OLD_KERAS),$(abspath $(KERAS)/keras-$(v)))) \
		$(KERAS)/bin/python -m pytest -m slow -q -rs tests/adapters/keras/test_versions.py

$(KERAS)/keras-%/.ready: $(KERAS)/.ready
	rm -rf $(KERAS)/keras-$*
	$(KERAS)/bin/python -m pip install --quiet --no-deps --target $(KERAS)/keras-$* keras==$*
	touch $@

test-pythons:
	@for v in 3.11 3.12 3.13 3.14; do \
		if ! python$$v -c '' 2>/dev/null; then echo "python$$v: not found, not tested"; continue; fi; \
		$(MAKE) --no-print-directory test-python-$$v || exit 1; \
	done

.venv-3.%/.ready: pyproject.toml
	$(call venv,.venv-3.$*,python3.$*,$(CORE_ONLY))

test-python-3.%: .venv-3.%/.ready
	.venv-3.$*/bin/python --version
	.venv-3.$*/bin/python -m pytest -m "$(QUICK)" $(SPREAD) -q $(CORE)

# Installs what is lacking, where it may; the servers that are there then have to work.
test-servers: $(READY) $(SERVERS)/.ready
	names=$$($(BIN)/python -m tests.servers.install) || exit 1; \
	CKPTFMT_SERVERS=$$names $(BIN)/python -m pytest -m "server and not soak" $(SPREAD) -rs tests/servers

# Several writers, readers and a collector on one store, killed again and again: on local disk,
# an emulator and a real object store, MINUTES each; then the faults on the latter that take
# long. ONLY=local, moto or ceph runs a part of it.
soak-servers: MINUTES ?= 30
soak-servers: ONLY ?=
soak-servers: $(READY) $(SERVERS)/.ready
	names=$$($(BIN)/python -m tests.servers.install ceph azurite) || exit 1; \
	CKPTFMT_SOAK_MINUTES=$(MINUTES) CKPTFMT_SEED=$(SEED) CKPTFMT_SERVERS=$(PORTABLE),$$names \
		$(BIN)/python -m pytest -m soak -k "$(ONLY)" -rs -s tests/servers


# Every part runs, whatever became of the one before.
soak:
	@echo "seed: $(SEED)"; failed=""; \
	for part in soak-core soak-torch soak-keras; do \
		$(MAKE) --no-print-directory $$part SEED=$(SEED) || failed="$$failed $$part"; \
	done; \
	echo "seed: $(SEED) (make soak SEED=$(SEED) repeats this run)"; \
	if test -n "$$failed"; then echo "FAILED:$$failed"; exit 1; fi; \
	echo "passed: soak-core, soak-torch, soak-keras"

FULL := CKPTFMT_SOAK=1 CKPTFMT_SEED=$(SEED)
LONG := -rs --timeout=14400 --durations=30 --durations-min=0.5

soak-core: $(READY)
	$(FULL) $(BIN)/python -m pytest -m "not gpu and not server" $(SPREAD) $(LONG) \
		--hypothesis-seed=$(SEED) --ignore=tests/servers

# Kills of real runs: twenty each.
soak-torch: $(TORCH)/.ready
	$(FULL) $(TORCH)/bin/python -m pytest $(LONG) \
		tests/adapters/torch/test_kill.py tests/adapters/torch/test_ranks.py

soak-keras: $(KERAS)/.ready
	@echo "seed: $(SEED)"; failed=""; for backend in torch jax tensorflow; do \
		echo "KERAS_BACKEND=$$backend pytest tests/adapters/keras/test_kill.py"; \
		KERAS_BACKEND=$$backend TF_CPP_MIN_LOG_LEVEL=3 $(FULL) \
			$(KERAS)/bin/python -m pytest -s $(LONG) tests/adapters/keras/test_kill.py \
			|| failed="$$failed $$backend"; \
	done; if test -n "$$failed"; then echo "failed on:$$failed"; exit 1; fi

# 10,000 inputs for each parser; CKPTFMT_CORPUS names more files to begin with.
fuzz: ARGS ?= --runs 10000
fuzz: $(FUZZ)/.ready
	$(FUZZ)/bin/python -m tests.fuzz $(ARGS)

# Takes an hour at most, and an idle machine; fills the table in README.md.
bench: ARGS ?= --readme --plots --minutes 60 --json .cache/bench.json
bench: $(BENCH)/.ready
	@mkdir -p .cache
	$(BENCH)/bin/python -m tests.bench --environments $(BENCH)/peers $(ARGS)

# A quarter of an hour; draws docs/bench-curves.svg.
bench-curves: ARGS ?= --plots --minutes 15 --json .cache/bench-curves.json
bench-curves: $(BENCH)/.ready
	@mkdir -p .cache
	$(BENCH)/bin/python -m tests.bench --curves $(ARGS)

bench-codec: $(READY)
	$(BIN)/python -m tests.bench.codec $(ARGS)

bench-same: $(TORCH)/.ready
	$(TORCH)/bin/python -m tests.bench.same $(ARGS)

# Some minutes. A contender that cannot be installed is left out, and the report says so.
bench-torch: ARGS ?= --json .cache/bench-torch.json --folder .cache
bench-torch: $(TORCH)/.ready
	@mkdir -p .cache
	-$(TORCH)/bin/python -m pip install --quiet --no-deps torch-checkpointing
	$(TORCH)/bin/python -m tests.bench.training $(ARGS)

# Some minutes. BACKEND=torch or tensorflow for the others; what cannot be installed is left out.
bench-keras: BACKEND ?= jax
bench-keras: ARGS ?= --json .cache/bench-keras-$(BACKEND).json --folder .cache
bench-keras: $(KERAS)/.ready
	@mkdir -p .cache
	-$(KERAS)/bin/python -m pip install --quiet orbax-checkpoint
	KERAS_BACKEND=$(BACKEND) TF_CPP_MIN_LOG_LEVEL=3 $(KERAS)/bin/python -m tests.bench.keras_run $(ARGS)

clean:
	rm -rf .venv .venv-* .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache dist
