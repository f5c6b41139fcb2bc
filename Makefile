# foretune: few commands. `make demo` and `make test` need nothing but Python 3.11 and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RIVALS := .bench/rivals
MODEL := .models/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo test test-fast lint docs lock sbom audit bench bench-simulation bench-prediction bench-influence bench-caching bench-overheads \
	bench-orchestration bench-rules bench-behaviour bench-concepts bench-scale bench-ranking bench-memory bench-gpu bench-quality bench-rivals-venv bench-quality-venv server clean
.DEFAULT_GOAL := demo

# Every file that is installed is held against its digest in a lock. torch comes first: its build for processors where
# an index or a folder of wheels has it, else the ordinary index's, which on Linux brings CUDA.
LOCKS := deployments/locks
LOCKED := -m pip install --quiet --require-hashes --requirement
$(STAMP): requirements.lock $(LOCKS)/torch-cpu.lock $(LOCKS)/torch-cuda.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(LOCKED) $(LOCKS)/torch-cpu.lock --no-deps 2>/dev/null || \
	$(BIN)/python $(LOCKED) $(LOCKS)/torch-cuda.lock --no-deps
	$(BIN)/python $(LOCKED) requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(MODEL): | $(STAMP)
	$(BIN)/python examples/demo/fetch_model.py $(dir $@)

demo: $(STAMP) $(MODEL)
	$(BIN)/foretune simulate examples/demo/request.yaml

# A test computes on one core, and one worker more computes while others wait for servers. A file's tests stay
# together, since they share what it set up; files go out in the order of tests/conftest.py.
# Hundreds of processes are started: none compiles every module anew.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
test: $(STAMP)
	$(PYTEST) --numprocesses 3

# Every room, without what starts servers, processes or whole simulations by the dozen.
test-fast: $(STAMP)
	$(PYTEST) --numprocesses 2 -m "not slow"

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

# Attempts of every kind against one contract: HOSTILE_ATTEMPTS that are generated, in HOSTILE_SECONDS of processor time
# at most, and all that are written by hand. tests/hostile/hostile.json holds what came of one run of it.
HOSTILE := .bench/hostile
HOSTILE_SECONDS ?= 1800
HOSTILE_ATTEMPTS ?= 3000
HOSTILE_WORKERS ?= 2
ATTEMPTS := tests/hostile/test_generated.py tests/hostile/test_written.py
FAULTS := tests/hostile/test_faults.py tests/hostile/test_lying_s3.py tests/storage/test_lying_s3.py tests/flows/test_interruption.py
.PHONY: hostile
# Each part runs whatever the one before it found; the status is that of all.
hostile: $(STAMP)
	rm -f tests/hostile/hostile.json
	failed=0; \
	HOSTILE_SECONDS=$(HOSTILE_SECONDS) HOSTILE_ATTEMPTS=$(HOSTILE_ATTEMPTS) HOSTILE_WRITE=1 \
		$(BIN)/python -m pytest --numprocesses $(HOSTILE_WORKERS) $(ATTEMPTS) || failed=1; \
	if $(MAKE) $(HOSTILE)/.installed; then \
		HOSTILE_WRITE=1 $(HOSTILE)/bin/python -m tests.hostile.guided $$(($(HOSTILE_SECONDS) / 60)) || failed=1; \
	else echo 'atheris does not install here: the parsers were not fuzzed by coverage'; fi; \
	HOSTILE_SECONDS=$(HOSTILE_SECONDS) $(BIN)/python -m pytest --numprocesses $(HOSTILE_WORKERS) --dist loadfile $(FAULTS) || \
		failed=1; \
	exit $$failed

# Reads the libraries of $(VENV) and adds atheris, which nobody else needs.
$(HOSTILE)/.installed: tests/hostile/requirements.txt $(STAMP)
	test -x $(HOSTILE)/bin/python || $(BIN)/python -m venv $(HOSTILE)
	$(HOSTILE)/bin/python -m pip install --quiet --requirement $<
	$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' > \
		$$($(HOSTILE)/bin/python -c 'import site; print(site.getsitepackages()[0])')/of_foretune.pth
	touch $@

# What foretune writes, opened by tools that pin other libraries: each environment adds them to those of $(VENV).
OTHERS := transformers4 tools4 tools5 vllm
.PHONY: thirdparty bench-thirdparty
thirdparty: $(OTHERS:%=.bench/%/.installed)
	$(BIN)/python -m pytest tests/thirdparty

# The same tools on the demo's own models, one of them trained for it.
bench-thirdparty: .bench/tools4/.installed .bench/tools5/.installed
	$(BIN)/python -m tests.benchmarks.thirdparty

$(OTHERS:%=.bench/%/.installed): .bench/%/.installed: tests/thirdparty/%.txt $(STAMP)
	test -x $(@D)/bin/python || $(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement $<
	$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' > \
		$$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/of_foretune.pth
	touch $@

docs: $(STAMP)
	$(BIN)/python docs/generate.py --check
	$(BIN)/sphinx-build --quiet --fail-on-warning --nitpicky --builder html docs build/docs

bench: bench-simulation bench-prediction bench-influence bench-caching bench-overheads bench-orchestration bench-rules \
	bench-quality bench-behaviour bench-concepts

bench-simulation: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.simulation

bench-prediction: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.prediction

bench-influence: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.influence

bench-orchestration: $(STAMP)
	$(BIN)/python -m tests.benchmarks.orchestration

bench-behaviour: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.behaviour

bench-scale: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.scale

bench-ranking: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.budget_ranking

bench-memory: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.memory

# On a machine with one GPU, within eight minutes and without a network.
bench-gpu: $(STAMP)
	$(BIN)/python -m tests.benchmarks.gpu

bench-concepts: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.concepts

bench-rules: $(STAMP)
	$(BIN)/python -m tests.benchmarks.rules

bench-quality: $(STAMP)
	$(BIN)/python -m tests.benchmarks.quality

# Tools that vet data, which the benchmark of quality is run beside, have an environment of their own too.
bench-quality-venv:
	test -x .bench/quality/venv/bin/python || $(PYTHON) -m venv .bench/quality/venv
	.bench/quality/venv/bin/python -m pip install --quiet dropoutt==1.4.1 soup-cli==0.77.0 py-data-juicer==1.6.1 \
		datatrove==0.10.1 aiohttp spacy

# The libraries that the influence benchmark is compared with have an environment of their own.
bench-rivals-venv: $(RIVALS)/.installed

$(RIVALS)/.installed: tests/benchmarks/rivals/requirements.txt
	test -x $(RIVALS)/bin/python || $(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet --requirement $<
	$(RIVALS)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio
	touch $@

server: export PREFECT_API_URL ?= http://127.0.0.1:4200/api
server: export PREFECT_SERVER_ANALYTICS_ENABLED := false
server: export PREFECT_SERVER_CORS_ALLOWED_ORIGINS := http://127.0.0.1:4200,http://localhost:4200
server: export PREFECT_SERVER_CSRF_PROTECTION_ENABLED := true
# Who may use the API: PREFECT_API_AUTH_STRING (user:password), else what is drawn once and kept in this file.
AUTH := $(VENV)/api-auth-string
# The server has a session of its own: Ctrl-C stops the worker, which still needs the server to stop in order.
DETACHED = $(BIN)/python -c 'import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])'
server: $(STAMP) $(MODEL)
	test -s $(AUTH) || (umask 077; $(BIN)/python -c 'import secrets; print("foretune:" + secrets.token_hex(32))' > $(AUTH))
	export PREFECT_API_AUTH_STRING="$${PREFECT_API_AUTH_STRING:-$$(cat $(AUTH))}"; \
	export PREFECT_SERVER_API_AUTH_STRING="$$PREFECT_API_AUTH_STRING"; \
	trap '$(BIN)/prefect server stop' EXIT; trap : INT; \
	$(DETACHED) $(BIN)/prefect server start --host 127.0.0.1 --background && \
	$(BIN)/prefect server status --wait --timeout 180 && \
	$(BIN)/prefect --no-prompt work-pool create foretune --type process --overwrite \
		--base-job-template deployments/pools/process.json && \
	$(BIN)/prefect --no-prompt deploy --name simulate --name vet --name backtest --name compare && \
	echo 'http://127.0.0.1:4200 asks for PREFECT_API_AUTH_STRING; without one of your own: cat $(AUTH)' && \
	$(BIN)/prefect worker start --pool foretune

# What writes locks, lists what is inside and asks for vulnerabilities has an environment of its own.
TOOLS := $(VENV)/tools
$(TOOLS)/.installed: $(LOCKS)/tools.lock
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(LOCKED) $<
	touch $@

lock: $(TOOLS)/.installed
	$(TOOLS)/bin/python $(LOCKS)/write.py $(UPGRADE)

# CycloneDX: what this environment holds, with licences, and what the image is made of.
sbom: $(STAMP) $(TOOLS)/.installed
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.json $(BIN)/python
	cat $(LOCKS)/torch-cuda.lock $(LOCKS)/image.lock | $(TOOLS)/bin/cyclonedx-py requirements \
		--pyproject pyproject.toml --output-reproducible -o build/sbom-image.json -

audit: $(TOOLS)/.installed
	$(TOOLS)/bin/python $(LOCKS)/audit.py $(AUDIT)

bench-caching: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.caching

bench-overheads: $(STAMP) $(MODEL)
	$(BIN)/python -m tests.benchmarks.overheads

clean:
	rm -rf .foretune build *.egg-info
