# Two commands for a fresh machine: `make demo` and `make test`. Everything rests on `make setup`.
#
#   PYTHON=python3.12   the interpreter that makes the environment (3.11 or newer)
#   WORKERS=4           test processes, one thread each
#   ARGS="-k resume"    more arguments for pytest

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
CODE := medseqft_kit kernels figures notebooks tests docs .ci

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak compare compare-full bench notebooks notebooks-browser figures lint audit docs clean

help: ## show these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(READY) ## make the virtual environment in .venv (once; again when a requirement changes)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "MedSeqFT Kit needs Python 3.11 or newer; %s is %d.%d. Name another: make setup PYTHON=python3.12" % (sys.executable, *v[:2]))'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@# PyTorch first and by its exact version, so that nothing that follows can choose another.
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,notebooks,figures,cluster,dicom,export]'
	@# Without what it asks for: timm, and with it torchvision, are for transformers that are not used here.
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps dynamic-network-architectures
	@touch $@

demo: setup ## the whole method on phantoms; writes demo/ and prints the report's path
	$(BIN)/medseqft demo --out demo

test: setup ## all tests, with line coverage
	@# From 3.12 on Python itself says which lines ran, at next to no cost.
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal --durations=30 --cov --cov-report=term $(ARGS)

soak: setup ## what takes longer: 300 shapes for each operation in Triton's interpreter, 200 kills (50 in bf16), one in front of every file operation, 24,000 damaged inputs, a SLURM cluster
	MEDSEQFT_INTERPRETER_EXAMPLES=300 MEDSEQFT_KILLS=200 MEDSEQFT_KILLED_OPERATIONS=1000 MEDSEQFT_RACES=1000 MEDSEQFT_FUZZ_INPUTS=1500 OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m soak -o faulthandler_timeout=3600 $(ARGS)

data/phantoms: | $(READY)
	$(BIN)/medseqft phantoms data/phantoms --cases 40 --side 36

compare: data/phantoms ## nine strategies on phantoms, 3 seeds, 2 orders, into runs/phantoms
	$(BIN)/medseqft compare examples/phantoms.yaml --out runs/phantoms

compare-full: data/phantoms ## every strategy, merge rule and ablation, 2 seeds, 2 orders, into runs/phantoms_full
	$(BIN)/medseqft compare examples/phantoms.yaml --out runs/phantoms_full --strategies all --set compare.seeds=[0,1]

bench: setup ## time every operation against its rivals on this machine; ARGS="--shapes segresnet" takes a part
	OMP_NUM_THREADS=1 $(BIN)/python kernels/benchmarks/run.py $(ARGS)
	$(BIN)/python kernels/benchmarks/mds.py
	$(BIN)/python kernels/benchmarks/memory.py
	$(BIN)/python kernels/benchmarks/landscape.py
	$(BIN)/python kernels/benchmarks/training.py
	$(BIN)/python kernels/benchmarks/goals.py

notebooks: setup ## execute all notebooks in their short form, into notebooks/executed (QUICK=0: the long form)
	$(BIN)/python notebooks/execute.py

notebooks-browser: setup ## run all notebooks in JupyterLab in Chromium, and look at what is drawn
	$(BIN)/python notebooks/browser.py

figures: data/phantoms ## a short comparison on phantoms, and every figure from it, into figures/built
	$(BIN)/medseqft compare figures/phantoms.yaml --out runs/figures
	$(BIN)/python figures/build.py runs/figures --out figures/built

lint: setup ## formatting, lint rules, types, direction of imports
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: setup ## known vulnerabilities of the pinned packages, where an advisory service can be reached
	$(BIN)/python .ci/audit.py

docs: setup ## the site, in site/
	$(BIN)/python docs/configuration_tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove what the targets above made, the environment excepted
	rm -rf build dist site demo notebooks/executed notebooks/pictures figures/built .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
