# `make demo` and `make test` need python3 and make only: they set up .venv by themselves.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.PHONY: help demo test lint docs pytest benchmarks notebooks outside package clean

help:
	@echo "make demo       train on digits of which some are rare: in full, shortened, filtered; three seeds, about a minute"
	@echo "make test       lint, tests and doctests, quick benchmarks, notebooks"
	@echo "make lint       style, types, floors (an import only goes down), spelling"
	@echo "make outside    other people's modules and losses, in .venv-outside; rows and docs/compatibility.md"
	@echo "make docs       the documentation's site in build/docs"
	@echo "make package    wheel and sdist in dist/, each tried in a fresh environment"
	@echo "make clean      remove what make has made, .venv included"

demo: $(INSTALLED)
	$(BIN)/autoassist demo

test: lint docs pytest benchmarks notebooks

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# What the site cannot resolve is an error, names of our own in docstrings too.
docs: $(INSTALLED)
	$(BIN)/sphinx-build --fail-on-warning --nitpicky --quiet docs build/docs

# One thread a process: the models are tiny, and threads that wait for each other cost most on a busy machine.
pytest: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --dist loadfile

benchmarks: $(INSTALLED)
	$(BIN)/python -m benchmarks.cost.overhead --quick
	$(BIN)/python -m benchmarks.cost.scale --quick
	$(BIN)/python -m benchmarks.images --quick
	$(BIN)/python -m benchmarks.text --quick
	$(BIN)/python -m benchmarks.rare_events --quick
	$(BIN)/python -m benchmarks.advice --quick
	$(BIN)/python -m benchmarks.label_errors --quick
	$(BIN)/python -m benchmarks.linear_svm --quick
	$(BIN)/python -m benchmarks.local_learning --quick
	$(BIN)/python -m benchmarks.translation --quick
	$(BIN)/python -m benchmarks.gauss_newton --quick
	$(BIN)/python -m benchmarks.kfac --quick
	$(BIN)/python -m benchmarks.demo --quick
	$(BIN)/python -m benchmarks.gpu --device cpu --quick --out build/gpu-quick
	$(BIN)/python -m benchmarks.report --check

notebooks: $(INSTALLED)
	$(if $(NOTEBOOKS),$(BIN)/jupyter execute --timeout=600 $(NOTEBOOKS))

# Tries what has no row of these versions yet; everything anew: make outside AGAIN=--again
outside: .venv-outside/.installed
	.venv-outside/bin/python -m benchmarks.outside $(AGAIN)

.venv-outside/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-outside
	.venv-outside/bin/pip install --progress-bar off --editable ".[outside]"
	touch $@

package: $(INSTALLED)
	rm -rf build dist
	$(BIN)/python -m build
	for file in dist/*.whl dist/*.tar.gz; do \
	    rm -rf build/fresh && $(PYTHON) -m venv build/fresh && \
	    build/fresh/bin/pip install --progress-bar off "$$file[demo]" && \
	    (cd build && fresh/bin/autoassist demo --epochs 2 --wandb off) || exit 1; \
	done

# Everything in one call, so that pip chooses a torch and a torchvision that fit each other; an import tells whether
# they do (torchvision against a torch that was built otherwise fails there, and takes torchmetrics with it).
$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --progress-bar off --editable ".[dev]"
	$(BIN)/python -c "import torchvision, torchmetrics"
	touch $@

clean:
	rm -rf .venv .venv-outside build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache autoassist-demo autoassist-compare
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
