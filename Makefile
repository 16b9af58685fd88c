# make run           serve config/proxy.yaml on port 5000
# make test          every hermetic test
# make check         ruff, mypy, import-linter and the tests
# make test-clients  the real clients and registries (root, Debian 12, Go); installs them first
# make screenshot    docs/status-page.png, by the status page's test in Chromium
# make bench         load beside others, with a report in bench-report/ (a quarter of an hour); SCENARIOS=fill for fills
# make clean         remove the environment; the cache stays

PYTHON ?= python3
BIN := .venv/bin
SCENARIOS ?= load

.PHONY: run test check bench test-clients install-clients screenshot clean

run: .venv/.made
	$(BIN)/pullthrough serve --config config/proxy.yaml

test: .venv/.made-dev
	$(BIN)/pytest -q

check: .venv/.made-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q

test-clients: .venv/.made-dev install-clients
	$(BIN)/pytest -q --override-ini addopts= tests/clients

install-clients:
	bash tests/clients/install.sh

screenshot: .venv/.made-dev install-clients
	SCREENSHOT=docs/status-page.png $(BIN)/pytest -q --override-ini addopts= 'tests/clients/test_status_page.py::test_live[one-process]'
	pngquant --strip --force --output docs/status-page.png docs/status-page.png

bench: .venv/.made-dev
	$(BIN)/python -m benchmarks $(SCENARIOS) --report bench-report

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# A stamp each, so that the second run starts at once: the environment is made again when pyproject.toml changes.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.made: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

.venv/.made-dev: .venv/.made
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@
