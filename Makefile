# Start with `make demo` or `make test`. Both create .venv first if it does not exist.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: help setup demo test test-all test-presets test-airflow airflow-setup test-flink flink-setup lint types tests tests-all soak docs docs-site \
	bench-ingest bench-train bench-serving bench-pipeline bench-scaling bench \
	lock clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

setup:  ## Create .venv from requirements.lock (immediate if nothing changed)
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) does not exist. Install Python 3.11, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) environment/bootstrap.py

demo: setup  ## Run the whole pipeline on MovieLens-100K, to served recommendations
	@$(BIN)/tandem demo

test: lint types tests  ## Lint, types and the fast tests, a small end-to-end run included (10 minutes)

test-all: lint types tests-all test-airflow test-flink  ## Lint, types and all tests, Airflow and Flink included (an hour)

test-presets: setup  ## Train every preset on both splits and compare with schemas/movielens/expected.yaml (an hour)
	$(BIN)/python -m pytest -m floors

test-airflow: airflow-setup  ## Run the DAG on a real Airflow and compare it with the other runners (20 minutes)
	$(BIN)/python -m pytest -m airflow --orchestrators local,airflow,kubeflow tests/airflow_runs

airflow-setup: setup  ## Create .venv-airflow, the environment of Airflow, from requirements-airflow.lock
	@$(BIN)/python environment/airflow_setup.py

test-flink: flink-setup  ## Run the Beam components on a real Flink of two task managers and kill one of them (7 minutes)
	$(BIN)/python -m pytest -m flink tests/flink_cluster

flink-setup: setup  ## Create .flink, Apache Flink with Beam's job server; needs Java 17 and Maven
	@$(BIN)/python environment/flink_setup.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

tests: setup
	$(PYTEST) -m 'not slow and not floors and not airflow and not flink'

tests-all: setup
	$(PYTEST) --orchestrators local,kubeflow

soak: setup  ## Push versions under load for five minutes; fails on any failed or mixed response
	$(BIN)/python -m pytest tests/serving/test_soak.py -s --soak-seconds 300 --soak-push-every 20

docs: setup  ## Regenerate docs/recipe.md from the models of the recipe
	$(BIN)/python -m recipe.reference > docs/recipe.md

docs-site: setup  ## Build the documentation as a site in site/; a dead link or a page without a place in the menu fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench-ingest: setup  ## Compare InteractionExampleGen with TFX's CsvExampleGen on 1 million interactions (minutes)
	$(BIN)/python benchmarks/ingest.py

bench-train: setup  ## Compare training of the preset `tutorial` with the TFRS tutorial's own loop (minutes)
	$(BIN)/python benchmarks/train.py

bench-serving: setup  ## Compare the embedded server with in-process requests, and the index ivf with exact (minutes)
	$(BIN)/python benchmarks/serving.py

bench-pipeline: setup  ## Compare the MovieLens run with the same DAG of stock TFX components (10 minutes)
	$(BIN)/python benchmarks/pipeline.py

bench-scaling: setup  ## Measure a run on 100,000 and on 1 million synthetic interactions (minutes)
	$(BIN)/python benchmarks/scaling.py

bench: setup  ## Run all benchmarks and write benchmarks/results.md (30 minutes on an idle machine)
	$(BIN)/python benchmarks/results.py

lock: setup  ## Resolve the newest versions that pyproject.toml allows, and write the lock files with hashes
	$(BIN)/python environment/lock.py

clean:  ## Remove all files that make and tandem created here
	rm -rf .venv .venv-airflow .flink .flink.partial .venv.lock .mypy_cache .pytest_cache .ruff_cache .hypothesis site data work
