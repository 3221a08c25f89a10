# make demo    find the nodules of a synthetic chest CT, or of your own: make demo INPUT=/some/folder
# make test    what every change has to pass
#
# Works with GNU make 3.81 (macOS) and later. The first run makes .venv; later runs use it as it is, offline.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
OUTPUT ?= outputs/demo

# The recipes read these from the environment and quote them there: folders may have spaces in their names.
export INPUT
export OUTPUT
export OVERWRITE
export THRESHOLD

# MONAI warns of two things at every run that the user can do nothing about.
export PYTHONWARNINGS ?= ignore:parsing config_file:UserWarning,ignore:NvImgCodecPydicomReader:UserWarning

PY      = $(VENV)/bin/python
RUNTIME = $(VENV)/.runtime
DEV     = $(VENV)/.dev
CHECK   = import sys; sys.exit(sys.version_info < (3, 11))
TOO_OLD = Python 3.11 or newer is needed, "$(PYTHON)" is not. Name another one: make PYTHON=python3.12 ...

.PHONY: help demo test lint format package clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo                  make a synthetic chest CT and find its nodules'
	@echo 'make demo INPUT=path       the same on your own: DICOM folder, .mhd, .nii.gz, folder of scans, datalist'
	@echo '          OUTPUT=path      where the results go (default: outputs/demo)'
	@echo '          THRESHOLD=0.25   smallest probability that is reported'
	@echo '          OVERWRITE=true   replace results that were made from something else'
	@echo 'make test                  lint, types and all tests'
	@echo '          JOBS=2           tests that run at the same time'
	@echo 'make lint                  ruff and mypy only'
	@echo 'make format                rewrite the code in the house format'
	@echo 'make package               the zip for the model zoo, in dist/'
	@echo 'make clean                 remove caches and .venv (results stay)'

# A number as folder name would reach the program as a number: every path is passed absolute.
# The synthetic scan is made once; its marker is written last, so that an interrupted run starts over.
demo: $(RUNTIME)
	@set -e; \
	absolute() { case "$$1" in /*) printf '%s' "$$1" ;; *) printf '%s' "$$PWD/$$1" ;; esac; }; \
	output=$$(absolute "$$OUTPUT"); \
	if [ -n "$$INPUT" ]; then input=$$(absolute "$$INPUT"); else \
	  OVERWRITE=true; made="$$output/input"; input="$$made/images"; \
	  if [ ! -d "$$made" ] || [ ! -e "$$output/input.complete" ]; then \
	    rm -rf "$$made"; \
	    (set -x; "$(PY)" -m scripts.prepare phantom --output_dir "$$made" --scans 1 --seed 7 --format dicom); \
	    touch "$$output/input.complete"; \
	  fi; \
	fi; \
	set -x; \
	"$(PY)" -m monai.bundle run inference --config_file configs/inference.json \
	  --input "$$input" --output_dir "$$output" $${OVERWRITE:+--overwrite "$$OVERWRITE"} \
	  $${THRESHOLD:+--threshold "$$THRESHOLD"}

# Two processes that wait for each other's threads are slower than one: each gets one thread. Files are handed out in
# the order of tests/conftest.py, which begins with the longest; the default begins with those of the most tests.
test: export OMP_NUM_THREADS ?= 1
test: lint
	$(PY) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(DEV)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

package: $(RUNTIME)
	$(PY) -m tools.package zoo --output_dir dist

clean:
	rm -rf "$(VENV)" .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage htmlcov
	find scripts tools tests -type d -name __pycache__ -exec rm -rf {} +

# An environment that is half made or too old is made again; pip asks its index only for what is missing.
$(RUNTIME): requirements.txt
	@"$(PY)" -c '$(CHECK); import pip' 2>/dev/null || { \
	  "$(PYTHON)" -c '$(CHECK)' 2>/dev/null || { echo '$(TOO_OLD)' >&2; exit 1; }; \
	  echo 'Making $(VENV): PyTorch and MONAI, 1 to 5 GB, a few minutes, only this once.'; \
	  "$(PYTHON)" -m venv --clear "$(VENV)"; }
	@"$(PY)" -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch "$@"

$(DEV): requirements-dev.txt $(RUNTIME)
	@"$(PY)" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch "$@"
