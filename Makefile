# make quickstart   a whole study on the embedded corpus, from nothing: models, evals, report
# make test         the default tests; some of them: make test ARGS="-k decay"
# make slow         the tests that only whole programs or several processes can make
# make parity       the tests against torch, transformers and lm-evaluation-harness
# make nightly      the tests that are made now and then: large inputs, a real SLURM, TPU compilers
# make xmanager     the tests of launch.xm, in an environment of their own
# make coverage     which lines the tests of test, slow and parity reach: docs/_build/coverage
# make docs         the documentation as a site, its tutorials run: docs/_build/html
# make lint         ruff
# make lock         the pinned versions anew
# make clean        deletes environments, caches and what was built
# make help         this list

PYTHON ?= python3
ARGS ?=
VENV ?= .venv
WORKDIR ?= runs/quickstart
PY = $(VENV)/bin/python

.PHONY: help quickstart test slow parity nightly coverage docs xmanager lint lock clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make \)/\1/p' Makefile

quickstart: $(VENV)/core
	$(PY) -m wd_plasticity.study --config=configs/quickstart.py --workdir=$(WORKDIR)

test: $(VENV)/core
	$(PY) -m pytest $(ARGS)

slow: $(VENV)/core
	$(PY) -m pytest -m slow $(ARGS)

parity: $(VENV)/parity
	$(PY) -m pytest tests/parity $(ARGS)

nightly: $(VENV)/core
	$(PY) -m pytest -m nightly $(ARGS)

coverage: $(VENV)/parity
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest -m "not nightly" $(ARGS)
	$(PY) -m coverage run -m pytest tests/parity $(ARGS)
	$(PY) -m coverage combine
	$(PY) -m coverage html -d docs/_build/coverage
	$(PY) -m coverage report

docs: $(VENV)/docs
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

xmanager: $(VENV)-xmanager/core
	$(VENV)-xmanager/bin/python -m pytest tests/test_launch_xmanager.py -m "not nightly" $(ARGS)

lint: $(VENV)/core
	$(PY) -m ruff check .

$(VENV)/core: requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/parity: $(VENV)/core requirements-parity.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -r requirements-parity.txt
	touch $@

$(VENV)/docs: $(VENV)/core requirements-docs.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -r requirements-docs.txt
	touch $@

# XManager needs a protobuf that is older than that of requirements.lock; pinned for Python 3.11.
$(VENV)-xmanager/core: requirements-xmanager.lock setup.py
	$(PYTHON) -m venv $(VENV)-xmanager
	$(VENV)-xmanager/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-xmanager.lock
	$(VENV)-xmanager/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# The pinned versions, for every supported Python at once.
lock:
	uv pip compile setup.py --universal --python-version 3.11 --extra test --no-header -o requirements.lock
	uv pip compile setup.py --python-version 3.11 --extra test --extra xmanager --no-header \
	  --no-annotate -o requirements-xmanager.lock

clean:
	rm -rf $(VENV) $(VENV)-xmanager docs/_build .jax_cache
