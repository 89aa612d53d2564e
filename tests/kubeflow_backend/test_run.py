"""A compiled pipeline, executed container by container: from files to a served model, or to a failed run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from compiled_recipes import ROOT, compile_recipe
from kfp_backend import Backend, Task

from components.infra_validator.server_process import serving
from tandem_client import Recommender

# Ten processes, each of which starts TensorFlow.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.orchestrator("kubeflow")]

DATA = ROOT / "tests" / "samples" / "books"
COMPONENTS = {
    "InteractionExampleGen", "StatisticsGen", "ImportSchemaGen", "ExampleValidator", "Transform", "Trainer",
    "ModelResolver", "Evaluator", "InfraValidator", "Pusher",
}  # fmt: skip
EPOCHS = 12


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the pipeline and the backend that ran it."""

    backend: Backend
    folder: Path
    tasks: dict[str, Task]

    @property
    def versions(self) -> list[str]:
        """In the serving folder."""
        return sorted(path.name for path in (self.folder / "serving").iterdir())

    @property
    def verdict(self) -> dict[str, Any]:
        return json.loads((self.tasks["Evaluator"].output("evaluation") / "verdict.json").read_text())

    def again(self, compiled: Path) -> Run:
        """The same parameters, on the same backend."""
        parameters = {"data_root": str(DATA), "push_destination": str(self.folder / "serving"), "epochs": EPOCHS}
        return dataclasses.replace(self, tasks=self.backend.run(compiled, parameters))


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory, tandem: Callable[..., Any]) -> Run:
    """The first run, compiled by the command line; the recipe sets 20 epochs, the run overrides them."""
    folder = tmp_path_factory.mktemp("kubeflow")
    outcome = tandem(
        *("compile", "kubeflow", "schemas/books", "--image", "registry/tandem:1", "--cache", "same-folder"),
        *("--pipeline-root", "gs://bucket/root", "--out", folder / "pipeline.yaml"),
    )
    assert outcome.code == 0, outcome.stderr
    assert "Required parameters of each run: data_root, push_destination" in outcome.stdout
    backend = Backend(folder / "root", environment={"TF_CPP_MIN_LOG_LEVEL": "2"})
    run = Run(backend, folder, {}).again(folder / "pipeline.yaml")
    for task in run.tasks.values():
        assert task.state == "succeeded", task.log[-5000:]
    return run


def test_every_component_runs_to_a_pushed_version(pushed: Run) -> None:
    assert set(pushed.tasks) == COMPONENTS
    (version,) = pushed.versions
    assert pushed.tasks["Pusher"].properties("pushed_model")["pushed_version"] == version
    assert (pushed.folder / "serving" / version / "saved_model.pb").is_file()


def test_the_driver_s_work_is_done_in_the_container_where_no_backend_does_it(pushed: Run) -> None:
    properties = pushed.tasks["InteractionExampleGen"].properties("examples")
    assert properties["input_fingerprint"] and properties["custom:span"] == 0
    assert properties["rows_read"] > 0 and properties["rows_rejected"] == 0


def test_the_run_s_settings_are_what_was_trained(pushed: Run) -> None:
    (curves,) = pushed.tasks["Trainer"].output("model_run").rglob("curves.json")
    assert {len(values) for values in json.loads(curves.read_text()).values()} == {EPOCHS}


def test_the_first_model_has_none_to_compare_with(pushed: Run) -> None:
    assert pushed.tasks["ModelResolver"].properties("model")["pushed_version"] == ""
    assert pushed.verdict["last_blessed"] == {} and pushed.verdict["last_blessed_problem"] is None


def test_the_pushed_model_answers_the_client(pushed: Run) -> None:
    items = {book["isbn"] for book in json.loads(next(DATA.glob("*.json")).read_text())["Books"].values()}
    with serving(pushed.folder / "serving", "recommender") as target, Recommender(target) as client:
        for answer in client.recommend_batch(["new user"], k=5):
            assert len({item.item_id for item in answer.items} & items) == 5
        assert 0.5 <= client.rate("new user", sorted(items)[0]) <= 5


def test_the_local_runner_makes_the_same_of_the_same_data(
    pushed: Run, tandem: Callable[..., Any], tmp_path: Path
) -> None:
    local = tandem(
        *("run", "schemas/books", "--data", DATA, "--workdir", tmp_path, "--set", f"training.epochs={EPOCHS}"), "--json"
    )
    assert local.code == 0, local.stderr
    rows = pushed.tasks["InteractionExampleGen"].properties("examples")
    assert {name: rows[f"rows_{name}"] for name in local.json["rows"]} == local.json["rows"]

    def vocabularies(transform_graph: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in (transform_graph / "transform_fn" / "assets").iterdir()}

    (graph,) = (tmp_path / "artifacts" / "Transform" / "transform_graph").iterdir()
    found = vocabularies(pushed.tasks["Transform"].output("transform_graph"))
    assert len(found) >= 2 and found == vocabularies(graph)
    # One seed, but threads add up in any order.
    assert pushed.verdict["metrics"] == pytest.approx(local.json["metrics"], abs=0.03)


def test_a_model_that_misses_its_gate_pushes_nothing_and_the_run_ends_failed_with_the_reason(
    pushed: Run, tmp_path: Path
) -> None:
    """What is served stays; what has not changed comes from the cache; the baseline is what was pushed."""
    before = pushed.versions
    strict = compile_recipe(tmp_path / "strict.yaml", "books", "gates.0.at_least=0.99", cache="same-folder")
    run = pushed.again(strict)
    assert {name for name, task in run.tasks.items() if task.state == "cached"} == COMPONENTS - {
        "ModelResolver", "Evaluator", "Pusher"
    }  # fmt: skip
    assert run.tasks["ModelResolver"].properties("model")["pushed_version"] == before[-1]
    assert run.verdict["last_blessed"] == pytest.approx(pushed.verdict["metrics"])
    assert (run.tasks["Pusher"].state, run.tasks["Pusher"].exit_code) == ("failed", 3)
    last_words = run.tasks["Pusher"].log.splitlines()[-2:]
    assert last_words[0] == "tandem: not blessed: nothing was pushed; the served version is unchanged."
    assert last_words[1].startswith("tandem: gates: top_10_accuracy: threshold ≥ 0.9900")
    assert pushed.versions == before


def test_vertex_finds_new_data_before_it_looks_into_its_cache(tmp_path: Path) -> None:
    """The driver adds the data's fingerprint, which the container takes over."""
    compiled = compile_recipe(tmp_path / "pipeline.yaml", "books", cache="same-folder")
    spec = next(yaml.safe_load_all(compiled.read_text()))
    tasks = spec["root"]["dag"]["tasks"]
    spec["root"]["dag"]["tasks"] = {name: tasks[name] for name in ("InteractionExampleGen",)}
    compiled.write_text(yaml.safe_dump(spec))
    data = tmp_path / "data"
    shutil.copytree(DATA, data)
    backend = Backend(tmp_path / "root", vertex=True, environment={"TF_CPP_MIN_LOG_LEVEL": "2"})

    def run() -> Task:
        return backend.run(compiled, {"data_root": str(data)})["InteractionExampleGen"]

    first = run()
    assert first.state == "succeeded", first.log[-5000:]
    assert first.properties("examples")["input_fingerprint"]
    assert run().state == "cached"
    (export,) = data.iterdir()
    export.write_text(export.read_text() + "\n")
    second = run()
    assert second.state == "succeeded"
    found = [task.properties("examples")["input_fingerprint"] for task in (first, second)]
    assert found[0] != found[1]
