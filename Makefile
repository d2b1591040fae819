# `make demo` and `make test` need python (3.10-3.13) and make, and nothing else prepared.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test lint format bench bench-live setup clean

demo: $(READY)  ## Tune a real LMCache under real traffic; TRACE=path.jsonl.gz for a recorded workload
	@$(BIN)/lmcache-agent demo $(if $(TRACE),--trace "$(TRACE)") $(DEMO_ARGS)

test: $(READY)  ## The whole test suite, with real servers
	$(BIN)/python -m pytest $(TEST_ARGS)

lint: $(READY)  ## What CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Speed of predictions against LMCache's own sweep, in one run; results in benchmarks/results
	$(BIN)/python benchmarks/prediction.py

bench-live: $(READY)  ## Accuracy against 36 live servers, about 20 minutes; goes on where it stopped
	$(BIN)/python benchmarks/prediction_live.py

setup: $(READY)

# Everything is pinned by constraints.txt. pip itself first: an old one knows no dependency groups.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[embedded,plot,studio]' --group dev
	touch $(READY)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
