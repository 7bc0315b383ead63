# make demo and make test set everything up on a fresh machine by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The newest Python; the oldest, 3.10, is mypy's setting in pyproject.toml and vermin's target.
NEWEST := 3.14

.PHONY: demo test lint types-oldest types-newest docs bench fuzz mutants faults specs wheels clean

demo: $(STAMP)
	$(BIN)/tinyq demo

test: lint
	$(BIN)/pytest
	TINYQ_KERNELS=off $(BIN)/pytest tests/quant tests/quantization

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs 2 types-oldest types-newest
	$(BIN)/vermin --target=3.10- --violations --no-tips --quiet gguf_tools quant surgery

types-oldest: $(STAMP)
	$(BIN)/mypy

types-newest: $(STAMP)
	$(BIN)/mypy --python-version $(NEWEST) --cache-dir .mypy_cache/newest -p gguf_tools -p quant -p surgery

docs: $(STAMP)
	$(BIN)/python -m docs.generate

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Ten million inputs, which take hours; needs atheris, which is built for few versions of Python.
fuzz: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m fuzzing

mutants: $(STAMP)
	$(BIN)/python -m tests.mutation

# Random specs from the whole language, each converted within its bound or refused by name.
specs: $(STAMP)
	$(BIN)/python -m tests.specs 2000

# Every fault on every command; writes docs/faults.md.
faults: $(STAMP)
	$(BIN)/python -m tests.faults --write

# What is published, all from one sdist, in dist/: the wheel without kernels, and this machine's with them. pip's cache does not
# tell the two builds apart.
wheels: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[wheels]'
	rm -rf build dist
	$(BIN)/python -m build --sdist
	TINYQ_PURE=1 $(BIN)/pip wheel --quiet --no-cache-dir --no-deps --wheel-dir dist dist/*.tar.gz
	TINYQ_PURE=0 $(BIN)/pip wheel --quiet --no-cache-dir --no-deps --wheel-dir build/wheels dist/*.tar.gz
	if [ "$$(uname)" = Linux ]; then PATH=$(BIN):$$PATH auditwheel repair --wheel-dir dist build/wheels/*.whl; \
	else cp build/wheels/*.whl dist; fi

$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard quant/kernels/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch llama-cpp-python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
