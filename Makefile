# `make` lists the targets. The first one that needs Python builds .venv; later ones install nothing.
# Another Python: make demo PYTHON=/path/to/python3.13. Another run: make report RUN=reports/smoke.
PY := .venv/bin/python
RUN := reports/demo
SUITS = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON = $(shell for p in python3.13 python3.12 python3.11 python3; do $$p -c '$(SUITS)' 2>/dev/null && echo $$p && break; done)

PIP = "$(PY)" -m pip install --disable-pip-version-check -c constraints.txt
CRF = $(PIP) -q "cython>=3" setuptools wheel numpy && $(PIP) -q --no-build-isolation --no-deps pydensecrf2

.PHONY: help crf quickstart demo smoke voc2012 test test-fast lint lab report site clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(SUITS)' || { \
	  echo "Python 3.11 to 3.14 is needed, and python3.13, python3.12, python3.11, python3 on the PATH are not that."; \
	  echo "Install one (python.org, apt install python3.13-venv, brew install python@3.13, pyenv or conda),"; \
	  echo "then run make again, or name it: make demo PYTHON=/path/to/python3.13"; exit 1; }
	@"$(PY)" -c 'import pip; $(SUITS)' 2>/dev/null || "$(PYTHON)" -m venv --clear .venv
	@echo "installing into .venv: some minutes and about 6 GB of disk, once"
	@$(PIP) -e ".[dev]"
	@$(CRF) || echo "pydensecrf2 could not be built (a C++ compiler is needed): stage 06 will be skipped. To try again: make crf"
	@touch $@

crf: .venv/.installed ## build the CRF of stage 06 again, where that failed for want of a C++ compiler
	@$(CRF)

quickstart: .venv/.installed ## the whole idea in one notebook, two minutes
	"$(PY)" -m mdlib run quickstart

demo: .venv/.installed ## run the demo on the embedded images, report in reports/demo
	"$(PY)" -m mdlib run demo

smoke: .venv/.installed ## the same notebooks at a tiny size: does everything work?
	"$(PY)" -m mdlib run smoke

voc2012: .venv/.installed ## the paper's run on PASCAL VOC 2012: run it if nothing is missing (a GPU; hours)
	"$(PY)" -m mdlib check voc2012
	"$(PY)" -m mdlib run voc2012

# Two processes; each takes a whole file, in the order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 "$(PY)" -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/.installed ## run all tests, in ten minutes on two CPU cores
	$(PYTEST) --durations=15

test-fast: .venv/.installed ## run the tests that start no kernel and train little, in a minute
	$(PYTEST) -m "not slow"

lint: .venv/.installed ## check rules, format, types and that notebooks are stripped; pre-commit does it too
	@"$(PY)" -m ruff check --quiet .
	@"$(PY)" -m ruff format --check --quiet .
	@"$(PY)" -m mypy
	@"$(PY)" -m nbstripout --verify --keep-id --extra-keys 'metadata.papermill cell.metadata.papermill cell.metadata.execution' notebooks/*.ipynb notebooks/solutions/*.ipynb

lab: .venv/.installed ## open the notebooks in JupyterLab, for this machine alone and with Jupyter's token
	"$(PY)" -m jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.allow_remote_access=False notebooks

report: .venv/.installed ## write the report of a finished run again (RUN=reports/demo)
	"$(PY)" -m mdlib report "$(RUN)"

site: .venv/.installed ## the course and a run's notebooks as pages, in reports/site (RUN=reports/demo)
	"$(PY)" -m mdlib site "$(RUN)"

clean: ## delete .venv and caches; data and runs stay
	rm -rf .venv maskdistill.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find benchmarks mdlib tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
