# One verb for each thing to do; CI uses the same ones. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEED ?= 1
LANES ?= 2
# Processes that run tests side by side: one more than CI has cores, as a third of the time is
# waiting; 0 is this process alone.
WORKERS ?= 3
SIDE_BY_SIDE := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# Else every daemon that a test starts compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv test check lint types layers format faults demo bench swarm clients two-phases phases clean sim degrees access

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

venv: $(READY)  ## make .venv with everything that tests need

test: $(READY)  ## the environment, then all tests (a few minutes)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

check: lint types layers test  ## all that CI checks

lint: $(READY)  ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

layers: $(READY)  ## the architecture, as a lint rule
	$(BIN)/lint-imports

format: $(READY)  ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

faults: $(READY)  ## kills, power cuts, failing calls, full disks, bit rot: hours, as root
	$(BIN)/python -m tests.faults prove
	P2PCACHE_SLOW=1 $(BIN)/python -m pytest tests/faults/test_bit_rot.py --timeout 3600
	$(BIN)/python -m tests.faults run --lanes $(LANES) --seed $(SEED)

degrees: $(READY)  ## real daemons with peers and hubs that fail in every way: minutes, as root
	P2PCACHE_SLOW=1 $(BIN)/python -m pytest tests/integration/test_degrees_of_failure.py tests/integration/test_bad_peers.py tests/integration/test_bad_hub.py

access: $(READY)  ## who may read what: every token, repository, mood of the hub and way to ask
	P2PCACHE_SLOW=1 $(BIN)/python -m pytest tests/integration/test_access_matrix.py tests/integration/test_token_canary.py tests/engine/test_access.py $(ARGS)

sim: $(READY)  ## the swarm in simulated time: the issue's table, then 2,000 seeds with faults
	for one in cold join kill seeder bad; do $(BIN)/python -m tests.sim --scenario $$one || exit 1; done
	$(BIN)/python -m tests.sim campaign --seeds 2000

demo: $(READY)  ## hub, three peers, a real model, the real client: a table of who gave what
	$(BIN)/python -m bench.demo

bench: $(READY)  ## one seeder to one peer, 1 GiB, with the raw limits beside it
	$(BIN)/python -m bench.transfer

clients: $(READY)  ## every release of every client, every acceptance case: half an hour
	P2PCACHE_SLOW=1 $(BIN)/python -m pytest tests/clients --timeout 300 $(ARGS)

swarm: $(READY)  ## a swarm behind shaped links, beside its rivals; ten minutes, as root
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m bench.swarm --rivals $(ARGS)

two-phases: $(READY)  ## a GPU that waits for its model's download, and one that does not: 4 minutes
	$(BIN)/python -m bench.two_phase $(ARGS)

phases: $(READY)  ## orders, residency and waiting against real daemons, the long forms: 7 minutes
	P2PCACHE_SLOW=1 $(BIN)/python -m pytest tests/integration/test_orders.py tests/integration/test_residency.py tests/integration/test_wait.py tests/test_waiting.py $(ARGS)
	$(BIN)/python -m bench.residency

clean:  ## remove what the verbs made
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
