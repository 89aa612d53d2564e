# Two commands are enough for a start: `make demo` and `make test`. Both make .venv first if it is not there yet.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: help setup demo test test-slow test-airflow airflow-setup test-flink flink-setup lint types tests soak docs docs-site \
	bench-ingest bench-train bench-serving bench-pipeline bench-scaling bench \
	lock clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

setup:  ## Make .venv from requirements.lock (at once when nothing changed)
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) was not found. Install Python 3.11, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) environment/bootstrap.py

demo: setup  ## MovieLens-100K through the whole pipeline to served recommendations
	@$(BIN)/tandem demo

test: lint types tests  ## Lint, types, and every test, the end-to-end runs included

test-slow: setup  ## Train every preset on both splits, and hold it against schemas/movielens/expected.yaml (an hour)
	$(BIN)/python -m pytest -m floors

test-airflow: airflow-setup  ## Run the DAG on a real Airflow, and hold it against the other runners (minutes)
	$(BIN)/python -m pytest -m airflow --orchestrators local,airflow,kubeflow tests/airflow_runs

airflow-setup: setup  ## Make .venv-airflow, an environment for Airflow alone, from requirements-airflow.lock
	@$(BIN)/python environment/airflow_setup.py

test-flink: flink-setup  ## Run Beam's part of the DAG on a real Flink of two task managers, and kill one of them (minutes)
	$(BIN)/python -m pytest -m flink tests/flink_cluster

flink-setup: setup  ## Make .flink, Apache Flink with Beam's job server; needs Java 17 and Maven
	@$(BIN)/python environment/flink_setup.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

tests: setup
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --orchestrators local,kubeflow

soak: setup  ## Push versions under load for five minutes: no client may see a failed or a mixed answer
	$(BIN)/python -m pytest tests/serving/test_soak.py -s --soak-seconds 300 --soak-push-every 20

docs: setup  ## Regenerate docs/recipe.md from the models of the recipe
	$(BIN)/python -m recipe.reference > docs/recipe.md

docs-site: setup  ## Build the documentation as a site in site/; a dead link or a page without a place in the menu fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench-ingest: setup  ## Time our ExampleGen against TFX's CsvExampleGen on 1 million interactions (minutes)
	$(BIN)/python benchmarks/ingest.py

bench-train: setup  ## Time our training of the preset `tutorial` against the TFRS tutorial's own loop (minutes)
	$(BIN)/python benchmarks/train.py

bench-serving: setup  ## Time the embedded server and the index ivf against calls without a server and brute force (minutes)
	$(BIN)/python benchmarks/serving.py

bench-pipeline: setup  ## Time the whole MovieLens run against the same DAG of stock TFX components (10 minutes)
	$(BIN)/python benchmarks/pipeline.py

bench-scaling: setup  ## Measure the whole run on 100,000 and on a million made-up interactions (minutes)
	$(BIN)/python benchmarks/scaling.py

bench: setup  ## Run every benchmark and write benchmarks/results.md (half an hour, on a machine that does nothing else)
	$(BIN)/python benchmarks/results.py

lock: setup  ## Resolve the newest versions that pyproject.toml allows, with hashes
	$(BIN)/python environment/lock.py

clean:  ## Remove what make and tandem wrote here
	rm -rf .venv .venv-airflow .flink .flink.partial .venv.lock .mypy_cache .pytest_cache .ruff_cache .hypothesis site data work
