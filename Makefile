# `make quickstart` and `make test` are all a newcomer needs. PYTHON chooses the interpreter, PIP_FLAGS goes to pip
# (for example an index with PyTorch builds for your CUDA version, or for the processor alone).
PYTHON ?= python3
PIP_FLAGS ?=
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet $(PIP_FLAGS)

.PHONY: quickstart test check clean

quickstart: .venv/installed
	.venv/bin/llmcore run

test: .venv/installed-test check
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "llmcore needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv

# requirements.lock pins every version, so that tomorrow's releases break nobody
.venv/installed: .venv/bin/python requirements.lock pyproject.toml
	@echo "installing into .venv (about 3 minutes and 2 GB the first time)"
	$(PIP) --constraint requirements.lock --editable .
	@touch $@

.venv/installed-test: .venv/installed
	@echo "installing what the tests need (llama.cpp is compiled once, about 5 minutes on 2 cores)"
	CMAKE_ARGS="-DLLAVA_BUILD=OFF $$CMAKE_ARGS" $(PIP) --constraint requirements.lock --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
