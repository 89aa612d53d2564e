"""The DAG: data flows as docs/architecture.md shows, eval is not learned from, a change reruns what it concerns."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline.dag as dag

# isort: split
from tfx import v1 as tfx
from tfx.dsl.compiler import compiler
from tfx.utils import json_utils

from recipe import Recipe, load_recipe, load_schema

RECIPE = """\
name: shop
data:
  sources:
    interactions: {files: orders.csv}
    items: {files: articles.csv, key: article}
  columns: {user_id: customer, item_id: article, label: stars, timestamp: at}
  split: {kind: random}
features:
  query:
    - {column: customer, kind: id}
    - {column: at, kind: buckets, buckets: 10}
  candidate:
    - {column: article, kind: id}
    - {column: name, kind: text}
gates:
  - {metric: rmse, at_most: 1.5}
  - {metric: top_10_accuracy, at_least: 0.1, may_drop: 0.01}
"""
SCHEMA = """
feature { name: "customer" type: BYTES }
feature { name: "article" type: BYTES }
feature { name: "name" type: BYTES }
feature { name: "stars" type: FLOAT }
feature { name: "at" type: INT }
"""

Build = Callable[..., tfx.dsl.Pipeline]


@pytest.fixture(scope="module")
def schema_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schema")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "schema.pbtxt").write_text(SCHEMA)
    return folder


@pytest.fixture
def build(schema_dir: Path, tmp_path: Path) -> Build:
    """The pipeline of the recipe with some changes; its paths are below `tmp_path`, where nothing is."""

    def make(*overrides: str) -> tfx.dsl.Pipeline:
        recipe: Recipe = load_recipe(schema_dir, overrides)
        return dag.create_pipeline(
            recipe,
            load_schema(schema_dir, recipe),
            data_root=str(tmp_path / "data"),
            pipeline_root=str(tmp_path / "artifacts"),
            serving_dir=str(tmp_path / "serving"),
        )

    return make


def compiled(pipeline: tfx.dsl.Pipeline) -> dict[str, Any]:
    return {node.pipeline_node.node_info.id: node.pipeline_node for node in compiler.Compiler().compile(pipeline).nodes}


def sources(node: Any) -> dict[str, set[str]]:
    """Which component each input comes from."""
    return {
        key: {channel.producer_node_query.id for channel in spec.channels} - {""}
        for key, spec in node.inputs.inputs.items()
        if not key.startswith("_")
    }


def component(pipeline: tfx.dsl.Pipeline, name: str) -> Any:
    (found,) = (each for each in pipeline.components if each.id == name)
    return found


def test_components_come_in_the_order_of_the_design(build: Build) -> None:
    assert list(compiled(build())) == [
        "InteractionExampleGen",
        "StatisticsGen",
        "ImportSchemaGen",
        "ExampleValidator",
        "Transform",
        "Trainer",
        "ModelResolver",
        "Evaluator",
        "InfraValidator",
        "Pusher",
    ]


def test_every_input_comes_from_the_component_of_the_design(build: Build) -> None:
    nodes = compiled(build())
    example_gen, schema = {"InteractionExampleGen"}, {"ImportSchemaGen"}
    assert {name: sources(node) for name, node in nodes.items()} == {
        "InteractionExampleGen": {},
        "StatisticsGen": {"examples": example_gen},
        "ImportSchemaGen": {},
        "ExampleValidator": {"statistics": {"StatisticsGen"}, "schema": schema},
        "Transform": {"examples": example_gen, "schema": schema},
        "Trainer": {"examples": {"Transform"}, "transform_graph": {"Transform"}, "schema": schema},
        "ModelResolver": {},
        "Evaluator": {"examples": example_gen, "model": {"Trainer"}, "baseline_model": {"ModelResolver"}},
        "InfraValidator": {"model": {"Trainer"}, "examples": example_gen},
        "Pusher": {"model": {"Trainer"}, "model_blessing": {"Evaluator"}, "infra_blessing": {"InfraValidator"}},
    }


def test_an_anomaly_stops_the_run_before_anything_is_learnt(build: Build) -> None:
    assert "ExampleValidator" in compiled(build())["Transform"].upstream_nodes


def test_the_model_to_compare_with_is_looked_up_after_training_where_the_pusher_writes(build: Build) -> None:
    """Otherwise an orchestrator could run it before an earlier run has pushed its model."""
    pipeline = build()
    assert "Trainer" in compiled(pipeline)["ModelResolver"].upstream_nodes
    destination = json.loads(component(pipeline, "Pusher").exec_properties["push_destination"])
    looked_at = component(pipeline, "ModelResolver").exec_properties["push_destination"]
    assert looked_at == destination["filesystem"]["base_directory"]


def test_the_eval_split_reaches_neither_transform_nor_trainer(build: Build) -> None:
    pipeline = build()
    splits = component(pipeline, "Transform").exec_properties["splits_config"]
    assert json.loads(splits) == {"analyze": ["train", "catalogue"], "transform": ["train", "catalogue"]}
    trainer = component(pipeline, "Trainer").exec_properties
    assert json.loads(trainer["train_args"])["splits"] == ["train"]
    assert json.loads(trainer["eval_args"])["splits"] == ["catalogue"]


def test_the_interactions_of_every_split_are_validated(build: Build) -> None:
    """The catalogue has no interaction columns; every other split has to keep to the schema."""
    pipeline = build()
    assert json_utils.loads(component(pipeline, "StatisticsGen").exec_properties["exclude_splits"]) == ["catalogue"]
    assert json_utils.loads(component(pipeline, "ExampleValidator").exec_properties["exclude_splits"]) == []


@pytest.mark.parametrize(
    ("override", "reruns"),
    [
        ("gates.0.at_most=0.9", {"Evaluator"}),
        ("gates.1.may_drop=0.5", {"Evaluator"}),
        ("slices.item_popularity.head=0.9", {"Evaluator"}),
        ("serving.exclude_seen=false", {"Trainer", "Evaluator", "InfraValidator"}),
        ("serving.max_p99_ms=20", {"InfraValidator"}),
        ("serving.keep_versions=2", {"Pusher"}),
        ("serving.wait_for.target=localhost:8500", {"Pusher"}),
        ("model.embedding_dim=8", {"Trainer"}),
        ("training.epochs=3", {"Trainer"}),
        ("serving.k=7", {"Trainer"}),
        ("features.query.1.buckets=20", {"Transform", "Trainer"}),
        ("features.candidate.1.display=true", {"Transform", "Trainer"}),
        ("data.split.seed=1", {"InteractionExampleGen"}),
        ("data.max_bad_rows=0.5", {"InteractionExampleGen"}),
        ("description=Better.", set()),
    ],
)
def test_a_change_of_the_recipe_reaches_only_the_components_it_concerns(
    build: Build, override: str, reruns: set[str]
) -> None:
    """What it does not reach comes from the cache (unless its inputs are new)."""
    before, after = compiled(build()), compiled(build(override))
    assert before.keys() == after.keys()
    assert {name for name in before if before[name].parameters != after[name].parameters} == reruns
    assert {name for name in before if before[name].inputs != after[name].inputs} == set()


def test_a_new_code_version_reruns_every_component_that_runs_code_of_ours(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compiled(build())
    monkeypatch.setattr(dag, "code_version", lambda *modules: "other" + "".join(modules))
    after = compiled(build())
    changed = {name for name in before if before[name].parameters != after[name].parameters}
    assert changed == before.keys() - {"StatisticsGen", "Pusher"}


def test_building_the_dag_twice_gives_the_same_one_and_writes_nothing(build: Build, tmp_path: Path) -> None:
    first, second = (
        compiler.Compiler().compile(build()).SerializeToString(deterministic=True) for _ in range(2)
    )  # fmt: skip
    assert first == second
    assert list(tmp_path.iterdir()) == []


def test_the_pusher_runs_in_every_run() -> None:
    """A version may have been removed, which is not part of the cache key."""
    assert "Pusher" in dag.NEVER_CACHED


@pytest.mark.parametrize("module", ["pipeline.dag", "pipeline.runners.launch"])
def test_keras_is_decided_on_before_tensorflow_is_imported(module: str) -> None:
    """An Airflow DAG file imports these first; with Keras 3, TensorFlow Recommenders does not work."""
    program = f"""
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name in ("tensorflow", "tfx"):
            print(os.environ.get("TF_USE_LEGACY_KERAS"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
import {module}
"""
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_run_does_not_import_what_it_has_no_use_for() -> None:
    """`tfx.v1` would: Google's AI platform alone takes a quarter of all the time that imports take."""
    program = """
import sys
import pipeline.dag, pipeline.runners.launch, pipeline.runners.airflow.component_task, components.trainer.run_fn
print(*(name for name in ("tfx.v1", "google.cloud.aiplatform", "kfp") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
