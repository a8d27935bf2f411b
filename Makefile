# Everything a developer does, one word each. `make demo` and `make test` work on a fresh Debian 12 machine
# (root or sudo, package registries): they install what is missing and say so.
PY := .venv/bin/python
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup setup-test demo test up bench scale soak soak-hosts soak-sim soak-rot mutations lint docs lock clean
help:           ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup:          ## install what running needs
	@deploy/setup run

setup-test:     ## install what the demo and the tests need
	@deploy/setup test

demo: setup-test ## the main job end to end on an embedded pool, with real clients
	$(PY) deploy/demo.py

test: setup-test ## every test that has no soak in its name (under 12 minutes on 2 cores)
	PYTHONHASHSEED=0 $(PY) -m pytest tests

up: setup       ## run a pool in ./data (Ctrl-C stops it)
	$(BIN)/trivium up --data data

bench: setup-test ## one JSON object: every face against the local disk in one run
	@$(PY) -m bench

scale: setup-test ## placement at 10 to 10,000 drives: balance, repair, probability of loss, as tables
	@$(PY) -m bench.scale

soak: setup-test ## long runs that add up: a ledger in .soak/ keeps the rounds and seeds done (ROUNDS=200)
	$(PY) -m tests.soak --rounds $(or $(ROUNDS),200)

soak-hosts: setup-test ## hosts in namespaces with either QUIC engine, or Unix sockets; 100,000 malformed datagrams (root)
	TRIVIUM_SOAK_HOSTS=1 $(PY) -m pytest -s tests/system/test_network.py tests/system/test_hosts.py tests/system/test_hosts_wire.py

soak-sim: setup-test ## whole-cluster simulations with new seeds, counted in .soak/sim.jsonl (SEEDS=500)
	$(PY) -m tests.simsoak --seeds $(or $(SEEDS),500) --jobs 2

mutations: setup-test ## break the product on purpose, fault by fault: the simulation must notice (writes docs/mutations.md)
	$(PY) -m tests.mutations --write

soak-rot: setup-test ## single random bits of everything on the drives, a new seed each time (BITS=20000)
	TRIVIUM_BITS=$(or $(BITS),20000) TRIVIUM_SEED=$$(shuf -i 1-1000000 -n 1) PYTHONHASHSEED=0 \
	$(PY) -m pytest -s tests/simulation/test_bitrot.py

lint: setup-test ## ruff, mypy strict, layers
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs:           ## write docs/commands.md anew from the commands
	$(PY) -m trivium.admin.cli.reference > docs/commands.md

lock:           ## write requirements.lock anew from pyproject.toml
	.venv/bin/uv pip compile --quiet --all-extras --no-header --no-annotate --no-emit-index-url pyproject.toml -o requirements.lock

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
