# PYTHON chooses the interpreter, PIP_FLAGS goes to pip (for example an index with PyTorch builds for your CUDA version, or
# for the processor alone).
PYTHON ?= python3
PIP_FLAGS ?=
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet $(PIP_FLAGS)
PYTEST = .venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help quickstart test check fast nightly hooks clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

quickstart: .venv/installed  ## install, then build the bundled corpus into a published model
	.venv/bin/llmcore run

test: .venv/installed-test check  ## everything but the nightly list: what CI runs
	$(PYTEST)

check: .venv/installed-check  ## format, lint, types, layers: seconds
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

fast: .venv/installed-test  ## unit tests, on stores in a folder: some minutes on two cores
	$(PYTEST) -m "not slow and not nightly" -k "not ceph and not moto"

nightly: .venv/installed-test  ## the long kills and scale runs: hours
	$(PYTEST) -m nightly --timeout 0

hooks: .venv/installed-check  ## format and lint before every commit
	.venv/bin/pre-commit install

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "llmcore needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv

# requirements.lock pins every version, so that tomorrow's releases break nobody
.venv/installed: .venv/bin/python requirements.lock pyproject.toml
	@echo "installing into .venv (about 3 minutes and 2 GB the first time)"
	$(PIP) --constraint requirements.lock --editable .
	@touch $@

.venv/installed-check: .venv/installed
	$(PIP) --constraint requirements.lock --editable '.[check]'
	@.venv/bin/mypy > /dev/null || true  # reads the libraries' types once, for a minute; `check` then takes seconds
	@touch $@

.venv/installed-test: .venv/installed-check
	@echo "installing what the tests need (llama.cpp is compiled once, about 5 minutes on 2 cores)"
	CMAKE_ARGS="-DLLAVA_BUILD=OFF $$CMAKE_ARGS" $(PIP) --constraint requirements.lock --editable '.[check,test]'
	@touch $@

clean:  ## remove the installation
	rm -rf .venv build *.egg-info
