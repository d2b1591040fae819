# `make demo` and `make test` need python (3.10-3.13) and make, and nothing else prepared.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

BASE := .venv-base

.PHONY: demo test test-base lint format bench bench-live setup clean

demo: $(READY)  ## Tune a real LMCache under real traffic; TRACE=path.jsonl.gz for a recorded workload
	@$(BIN)/lmcache-agent demo $(if $(TRACE),--trace "$(TRACE)") $(DEMO_ARGS)

test: $(READY)  ## The whole test suite, with real servers
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(TEST_ARGS)

test-base: $(BASE)/ready  ## The same where neither lmcache nor any other extra is installed, on a simulated cache
	$(BASE)/bin/python -m pytest --numprocesses 2 --dist loadfile $(TEST_ARGS)

lint: $(READY)  ## What CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Speed against LMCache's own sweep and raw HTTP, in one run; results in benchmarks/results
	$(BIN)/python benchmarks/prediction.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/fleet.py
	$(BIN)/python benchmarks/server_module.py

bench-live: $(READY)  ## Predictions, advice and a soak on live servers, about two hours; goes on where it stopped
	$(BIN)/python benchmarks/prediction_live.py
	$(BIN)/python benchmarks/prediction_live.py --l2
	$(BIN)/python benchmarks/advice_live.py
	$(BIN)/python benchmarks/server_module_soak.py

setup: $(READY)

# Everything is pinned by constraints.txt. pip itself first: an old one knows no dependency groups.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[agent,embedded,mcp,plot,serve,studio]' --group dev
	touch $(READY)

$(BASE)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BASE)/bin/python -m pip install --quiet --constraint constraints.txt --editable . --group test-base
	touch $@

clean:
	rm -rf $(VENV) $(BASE) .mypy_cache .pytest_cache .ruff_cache
