# foretune: few commands. `make demo` and `make test` need nothing but Python 3.11 and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RIVALS := .bench/rivals
MODEL := .models/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo test test-fast lint docs bench bench-simulation bench-prediction bench-influence bench-caching bench-overheads \
	bench-orchestration bench-rivals-venv server clean
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

# Two workers: a test computes on one core. A file's tests stay together, since they share what it set up.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
test: $(STAMP)
	$(PYTEST)

# Every room, without what starts servers, processes or whole simulations by the dozen.
test-fast: $(STAMP)
	$(PYTEST) -m "not slow"

# What static tools read: the folders under the names that they are installed by.
LINKS := $(VENV)/src/foretune
.PHONY: $(LINKS)
$(LINKS): $(STAMP)
	rm -rf $@ && mkdir -p $@/flows
	cd $@ && ln -s ../../../tasks ../../../storage ../../../flows/api/*.py .
	cd $@/flows && ln -s $$(ls -d ../../../../flows/* | grep -v -e /api -e __pycache__) .

lint: $(LINKS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=$(VENV)/src $(BIN)/lint-imports
	$(BIN)/basedpyright

docs: $(STAMP)
	$(BIN)/python docs/generate.py --check
	$(BIN)/sphinx-build --quiet --fail-on-warning --nitpicky --builder html docs build/docs

bench: bench-simulation bench-prediction bench-influence bench-caching bench-overheads bench-orchestration

bench-simulation: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.simulation

bench-prediction: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.prediction

bench-influence: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.influence

bench-orchestration: $(STAMP)
	$(BIN)/python -m tests.benchmarks.orchestration

# The libraries that the influence benchmark is compared with have an environment of their own.
bench-rivals-venv: $(RIVALS)/.installed

$(RIVALS)/.installed: tests/benchmarks/rivals/requirements.txt
	test -x $(RIVALS)/bin/python || $(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet --requirement $<
	$(RIVALS)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio
	touch $@

server: export PREFECT_API_URL ?= http://127.0.0.1:4200/api
server: export PREFECT_SERVER_ANALYTICS_ENABLED := false
# The server has a session of its own: Ctrl-C stops the worker, which still needs the server to stop in order.
DETACHED = $(BIN)/python -c 'import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])'
server: $(STAMP) $(MODEL)
	trap '$(BIN)/prefect server stop' EXIT; trap : INT; \
	$(DETACHED) $(BIN)/prefect server start --background && \
	$(BIN)/prefect server status --wait --timeout 180 && \
	$(BIN)/prefect --no-prompt work-pool create foretune --type process --overwrite && \
	$(BIN)/prefect --no-prompt deploy --name simulate --name vet --name backtest --name compare && \
	$(BIN)/prefect worker start --pool foretune

bench-caching: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.caching

bench-overheads: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.overheads

clean:
	rm -rf .foretune build *.egg-info
