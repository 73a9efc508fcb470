# The course's commands. Each makes the environment (.venv) first, if it is missing or out of date:
#   make demo    train a small LLaMA from raw text and write a report
#   make lab     open the course in JupyterLab, with your own folder my/
#   make test    check everything
#   make docs    build the site into docs/_site
#   make pdf     and print it as one PDF, docs/_pdf/llama_course.pdf (with Chromium)
#   make slides  slides for a first lecture, into docs/_slides
#   make bench   run the benchmarks
#   make chapter N=08   check one chapter: export it, run it, its tests and its exercise
#   make cluster   the tests that need a real Slurm (apt-get install slurm-wlm munge) and Ray
#   make mutants N=08   change every solution at one place: does its judge notice?
#   make seeds N=08    the course's own right answers, on fifty seeds and under every setting
#   make update  renew requirements.lock with the newest versions, and run everything
# After an edit in nbs/ or solutions/: make generate
# Options go through ARGS: make demo ARGS="--minutes 1"

PYTHON ?= python3
ARGS ?=
MY ?= my
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check
READY := .venv/.ready

# Two notebooks run at a time, beside three files of tests, which often wait. Together they use the cores that there are:
# each has its share of threads, and a thread that waits for others sleeps and does not spin on a core that they need.
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
THREADS := $(shell expr \( $(CORES) + 1 \) / 2)
SHARED := OMP_NUM_THREADS=$(THREADS) NUMBA_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=passive
BOTH := $(MAKE) --no-print-directory --jobs 2

# The kernel and the settings of .venv, whatever else is installed for this user; nothing is fetched at run time.
export JUPYTER_PREFER_ENV_PATH := 1
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo lab test test-form test-types test-files test-notebooks
.PHONY: docs pdf slides bench chapter cluster mutants seeds update generate

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

$(READY): requirements.lock settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("llama_course needs Python 3.11 or later; " \
	  "$(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.11")'
	@echo "Making the environment once, in .venv (some minutes, most of them for torch)"
	@echo "  1/4 a virtual environment"
	@$(PYTHON) -m venv .venv
	@echo "  2/4 torch"
	@$(PIP) --constraint requirements.lock torch
	@echo "  3/4 the other packages of requirements.lock"
	@$(PIP) --no-deps --requirement requirements.lock
	@echo "  4/4 llama_course, from this folder"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	$(BIN)/llama-course demo $(ARGS)

lab: $(READY)
	@$(BIN)/llama-course start --folder $(MY)
	JUPYTER_CONFIG_PATH=docs/lab $(BIN)/jupyter lab $(ARGS)

test: $(READY)
	@echo "== 1/2 what is generated equals its sources; the form of the code =="
	@$(BIN)/nbdev_clean && $(BIN)/nbdev_clean --fname solutions  # of what opening a notebook writes
	@$(BIN)/ruff check --quiet && $(BIN)/ruff format --check --quiet
	@$(BOTH) test-types test-form
	@echo "== 2/2 all tests, the site and the browser among them; beside them the notebooks run =="
	@$(BOTH) test-notebooks test-files

test-types:
	@$(BIN)/mypy

test-form:
	@$(BIN)/pytest -q tests/test_repo.py tests/test_house.py

# What they say is shown in the end, in one piece. The cells of solutions/ run in tests/test_grading.py.
test-notebooks:
	@said=$$($(SHARED) $(BIN)/nbdev_test --n_workers 2 --timing --do_print 2>&1); status=$$?; \
	  printf '\n== the notebooks ==\n%s\n' "$$said"; exit $$status

test-files:
	@$(SHARED) $(BIN)/pytest -n 3 --dist loadfile --ignore tests/test_repo.py --ignore tests/test_house.py $(ARGS)

docs: $(READY)
	$(BIN)/python docs/build.py

pdf: docs
	$(BIN)/python docs/pdf.py

slides: $(READY)
	$(BIN)/python docs/slides.py $(ARGS)

bench: $(READY)
	@for script in $$(ls benchmarks/[a-z]*.py | grep -v miniseries); do echo "== $$script =="; $(BIN)/python $$script $(ARGS) || exit 1; done

chapter: $(READY)
	@$(BIN)/python tools/chapter.py $(N)

# Slurm and munge come from the system; Ray, Weights & Biases and MLflow are added to .venv.
cluster: $(READY)
	@PATH="$$PATH:/usr/sbin"; command -v slurmctld >/dev/null && command -v munged >/dev/null || \
	  { echo "Slurm is not installed: apt-get install slurm-wlm munge"; exit 1; }
	@$(PIP) --no-build-isolation --editable ".[cluster]"
	$(SHARED) $(BIN)/pytest -rs tests/test_cluster.py tests/test_path.py $(ARGS)

mutants: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py $(N) $(ARGS)

seeds: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python tools/seeds.py $(N) $(ARGS)

# With the lock renewed the environment is made anew, and everything is run in it.
update: $(READY)
	$(BIN)/python tools/update.py
	$(MAKE) test

# Everything that is made from notebooks, made again: the library, the exercises, the README. No edit is lost.
generate: $(READY)
	$(BIN)/python tools/generate.py
