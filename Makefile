# gpubox. `make` alone says what there is. Everything happens in .venv; nothing here needs root.

PYTHON ?= python3
bin := .venv/bin
project := pyproject.toml runner/__init__.py

.PHONY: help demo test check bench soak lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/box.stamp  ## train a small network through a real queue, on this computer
	@$(bin)/runner submit examples/digits/train.py
	@printf '%s\n' '' 'That was a queue of your own, and it is still there. Next:' \
		'  $(bin)/runner ps         what ran, what waits' \
		'  $(bin)/runner submit --sweep hidden=16,64,256 examples/digits/train.py' \
		'  $(bin)/runner help       everything else' >&2

test: .venv/dev.stamp  ## the tests that fit into three minutes; with CI set, all that fit into an hour
	@$(bin)/python -m pytest

check: .venv/dev.stamp  ## ruff and mypy --strict
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

bench: .venv/box.stamp  ## the figures of the project, measured here
	$(bin)/python -m bench

soak: .venv/dev.stamp  ## the tests that take long, with their figures: kills, power cuts, floods, trainings, whole hosts
	$(bin)/python -m pytest -m 'slow or crash or root or box'

lock: .venv/box.stamp  ## take the newest versions and write their hashes to requirements/
	$(call compile,box)
	$(call compile,dev)

clean:  ## remove what make and the tests made here; jobs, logs and outputs stay
	rm -rf .venv build gpubox.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find runner dashboard tests bench examples -name __pycache__ -prune -exec rm -rf {} +

# Without a name of an index in the files, so that they work with yours; --universal: with every Python from 3.11 on.
compile = $(bin)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links requirements/$(1).in --output-file requirements/$(1).txt

# The stamps make a second `make` instant: each is older than what it was made from only when that changed.
.venv/box.stamp: requirements/box.txt $(project)
	@$(call made_of,box)
	@touch $@

.venv/dev.stamp: requirements/dev.txt .venv/box.stamp
	@echo "fetching what the tests need into .venv, once: about half a minute" >&2
	@$(call installed,dev)
	@touch $@

define made_of
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "gpubox needs Python 3.11 or newer as $(PYTHON); name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
test -x $(bin)/pip || { echo "making .venv, once: about half a minute" >&2; $(PYTHON) -m venv .venv >.venv.log 2>&1; } || { \
	cat .venv.log >&2; rm -rf .venv .venv.log; \
	echo "Python could not make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }; \
rm -f .venv.log; \
$(call installed,box) && $(call itself)
endef

installed = $(bin)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$(1).txt

# uv and compat, because of how fast `runner` then starts: the script that an older pip writes imports `re` (5 ms), the
# finder of setuptools' usual editable install costs every Python here 11 ms, its shim for distutils 1 ms.
itself = env -u VIRTUAL_ENV $(bin)/uv pip install --quiet --offline --python $(bin)/python --no-deps \
	--no-build-isolation --config-settings editable_mode=compat --editable . && \
	rm -f .venv/lib/python*/site-packages/distutils-precedence.pth && \
	env -u PYTHONDONTWRITEBYTECODE $(bin)/python -m compileall -q runner dashboard
