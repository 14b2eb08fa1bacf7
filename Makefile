# Needs python3 (3.11 or newer), pip and make; everything else goes into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# With it, each of the many processes of the tests would compile the relay again.
unexport PYTHONDONTWRITEBYTECODE
# pip stays outside: --without-pip also works where Debian has not installed python3-venv.
INSTALL = $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python install --quiet --editable

LOCK_VENV := .venv-lock
AUDIT_VENV := .venv-audit
SBOM_VENV := .venv-sbom
INTEGRATION_VENV := .venv-integration
LOCK_OPTIONS := --quiet --upgrade --generate-hashes --strip-extras --extra server --no-emit-index-url --no-emit-find-links \
	--no-emit-trusted-host --no-emit-options

.PHONY: help demo test browser screenshots soak sim rehearse-alerts rehearse-incident rehearse-incidents rehearse-commands rehearse-procedures lint bench bench-peers bench-scale bench-fleet bench-workers bench-large bench-query bench-dead-letters format audit sbom lock schemas check-integration clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1 -/p' $(MAKEFILE_LIST)

demo: $(VENV)/.local  ## relay real updates through an embedded nats-server to a simulated Facilitator
	@$(BIN)/relay demo
	@echo "A page to look at it: $(BIN)/relay demo --keep --console"

test: $(VENV)/.dev browser  ## run the whole test suite
	@$(BIN)/python -m pytest --numprocesses 6 -rs

browser:  ## install Debian's chromium, for the tests of the console, unless there is one
	@command -v chromium >/dev/null || { apt-get update --quiet=2 && apt-get install --quiet=2 --no-install-recommends chromium; } >/dev/null 2>&1 \
		|| echo 'There is no chromium, and it could not be installed (as root: apt-get install chromium). The tests of the console that need it are skipped.'

screenshots: $(VENV)/.dev  ## take the pictures of docs/console.md again (2 minutes)
	@$(BIN)/python -m pytest -q --override-ini pythonpath='tests/kit tests/docs' tests/console/screenshots.py

soak: $(VENV)/.bench $(VENV)/.dev  ## a million updates, 20,000 schedules of the simulation, a rough minute, long outages (some 45 minutes)
	@$(BIN)/python -m tests.faults.soak --updates 1000000 --minutes 20 --json soak.json
	@COUNT=20000 $(BIN)/python -m pytest -q --timeout 3600 tests/faults/test_simulation.py -k schedules
	@ROUGH_S=60 $(BIN)/python -m pytest -q --timeout 600 tests/faults/test_rough_minute.py
	@STALL_S=45 $(BIN)/python -m pytest -q tests/faults/test_stall.py
	@$(BIN)/python -m pytest -q tests/faults/quorum.py
	@LETTERS=1000000 $(BIN)/python -m pytest -q tests/console/test_nats.py -k great_many

sim: $(VENV)/.dev  ## tell one schedule of the simulation line by line (make sim SEED=17)
	@SEED=$(SEED) $(BIN)/python -m pytest -q -s tests/faults/test_simulation.py -k replay

rehearse-alerts: $(VENV)/.dev  ## make every alert fire and go out with a real Prometheus (some 10 minutes; wants prometheus on the PATH)
	@$(BIN)/python deploy/rehearsal/alerts.py

rehearse-incident: $(VENV)/.dev  ## break one of eight things without saying which, to find it with relay doctor
	@$(BIN)/python deploy/rehearsal/incidents.py

rehearse-incidents: $(VENV)/.dev  ## break each of them, and let relay doctor find it (some 2 minutes)
	@$(BIN)/python deploy/rehearsal/incidents.py --all

rehearse-commands: $(VENV)/.dev  ## run every nats command of the pages on a real cluster (some 2 minutes; wants nats 0.5.0 on the PATH)
	@$(BIN)/python deploy/rehearsal/commands.py

rehearse-procedures: $(VENV)/.dev  ## carry out the procedures of docs/operations.md under load (some 6 minutes; wants nats 0.5.0 on the PATH)
	@$(BIN)/python deploy/rehearsal/procedures.py

lint: $(VENV)/.dev  ## ruff, pyright and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

bench: $(VENV)/.bench  ## measure the relay beside its floors (some 10 minutes)
	@$(BIN)/python -m bench all --json bench.json

bench-peers: $(VENV)/.bench  ## the same beside every peer; wants redis-server on the PATH (some 30 minutes)
	@$(BIN)/python -m bench all --peers --json bench-peers.json

bench-scale: $(VENV)/.bench  ## memory, recovery, start-up and durability of the relay (some 25 minutes)
	@$(BIN)/python -m bench scale --rounds 5 --json bench-scale.json

bench-fleet: $(VENV)/.bench  ## 4 to 256 lanes and 1 to 4 workers on a cluster of three servers (some 20 minutes)
	@$(BIN)/python -m bench all --fleet --rates 1000 --rounds 3 --json bench-fleet.json

bench-workers: $(VENV)/.dev  ## measure hand-overs and what more workers carry (some 5 minutes)
	@$(BIN)/python -m bench.workers

bench-large: $(VENV)/.bench  ## large updates that wait for the Facilitator (some 10 minutes)
	@$(BIN)/python -m bench.large --json bench-large.json

bench-query: $(VENV)/.bench  ## ask for the status of ten and of a million jobs, and what receipts cost (some 20 minutes)
	@$(BIN)/python -m bench.query

bench-dead-letters: $(VENV)/.dev  ## list a million dead letters and replay ten thousand (some 5 minutes)
	@$(BIN)/python -m bench.dead_letters --letters 1000000

format: $(VENV)/.dev  ## let ruff mend what it can
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

audit:  ## look what the image installs up in the OSV database of known vulnerabilities (needs the Internet)
	@$(PYTHON) -m venv --clear $(AUDIT_VENV)
	@$(AUDIT_VENV)/bin/python -m pip --disable-pip-version-check install --quiet 'pip-audit>=2.9,<3'
	@$(AUDIT_VENV)/bin/pip-audit --strict --vulnerability-service osv --disable-pip --require-hashes --progress-spinner off \
		--requirement requirements.lock || { echo 'make audit: not passed. Either a pinned version has a known' \
		'vulnerability (named above: raise it in pyproject.toml and run make lock), or OSV cannot be reached from here.'; exit 1; }

check-integration: $(VENV)/.dev $(INTEGRATION_VENV)/.made  ## install the publisher beside the pins of others, and run the pages' code there (needs the package indexes)
	@$(BIN)/python -m pytest -q -rs --numprocesses 4 tests/integration/*.py

sbom:  ## list what the image installs as a CycloneDX bill of materials (sbom.json)
	@$(PYTHON) -m venv --clear $(SBOM_VENV)
	@$(SBOM_VENV)/bin/python -m pip --disable-pip-version-check install --quiet 'cyclonedx-bom>=7,<8'
	@$(SBOM_VENV)/bin/python -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file sbom.json requirements.lock
	@rm -rf $(SBOM_VENV)

schemas: $(VENV)/.dev  ## write docs/asyncapi.yaml and docs/schemas from the models
	@$(BIN)/python tests/docs/contract_files.py

lock:  ## pin what the image installs, alone, with OpenTelemetry and with the console, with hashes and without addresses (PYTHON=the image's python)
	@$(PYTHON) -m venv --clear $(LOCK_VENV)
	@$(LOCK_VENV)/bin/python -m pip --disable-pip-version-check install --quiet 'pip-tools>=7.5,<8'
	@CUSTOM_COMPILE_COMMAND='make lock' $(LOCK_VENV)/bin/pip-compile $(LOCK_OPTIONS) --extra server --output-file requirements.lock pyproject.toml
	@CUSTOM_COMPILE_COMMAND='make lock' $(LOCK_VENV)/bin/pip-compile $(filter-out --upgrade,$(LOCK_OPTIONS)) --extra server --extra otel \
		--constraint requirements.lock --output-file requirements-otel.lock pyproject.toml
	@CUSTOM_COMPILE_COMMAND='make lock' $(LOCK_VENV)/bin/pip-compile $(filter-out --upgrade,$(LOCK_OPTIONS)) --extra server --extra console \
		--constraint requirements.lock --output-file requirements-console.lock pyproject.toml
	@rm -rf $(LOCK_VENV)

clean:  ## remove what these targets made
	rm -rf $(VENV) $(AUDIT_VENV) $(SBOM_VENV) $(INTEGRATION_VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache .mypy_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "job-status-relay needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12 ..." % sys.version.split()[0] or 0)'
	@$(PYTHON) -m venv --without-pip $(VENV)

$(VENV)/.local: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the relay into $(VENV) (once) ..."
	@$(INSTALL) '.[local,console]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the relay and its development tools into $(VENV) (once) ..."
	@$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.local

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the relay and what it is compared with into $(VENV) (once) ..."
	@$(INSTALL) '.[bench]'
	@touch $@ $(VENV)/.local

$(INTEGRATION_VENV)/.made: pyproject.toml tests/integration/validator.txt tests/integration/tools.txt
	@echo "Installing the publisher beside a validator's pins into $(INTEGRATION_VENV) (once) ..."
	@$(PYTHON) -m venv --clear --without-pip $(INTEGRATION_VENV)
	@$(PYTHON) -m pip --disable-pip-version-check --python $(INTEGRATION_VENV)/bin/python install --quiet 'uv>=0.8'
	@$(INTEGRATION_VENV)/bin/uv pip install --quiet --python $(INTEGRATION_VENV)/bin/python --editable . \
		--requirement tests/integration/validator.txt --requirement tests/integration/tools.txt
	@touch $@
