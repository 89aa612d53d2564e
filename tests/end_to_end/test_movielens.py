"""Runs on real data: a gated and served recommender from CSVs, and no push of a model that fails."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.orchestrator("local")]

COMPONENTS = {
    "InteractionExampleGen", "StatisticsGen", "ImportSchemaGen", "ExampleValidator", "Transform", "Trainer",
    "ModelResolver", "Evaluator", "InfraValidator", "Pusher",
}  # fmt: skip


def test_no_part_of_the_run_left_the_choice_of_its_runner_to_beam(first_run: Any) -> None:
    """Beam's own choice begins with the download of a program."""
    log = Path(first_run.result["log"]).read_text(errors="replace")
    # TFX logs this for each component with Beam arguments.
    assert log.count("Nonempty beam arg sdk_container_image") == 4
    assert "using the default runner" not in log
    assert "Prism" not in log


def versions(run: Any) -> list[str]:
    return sorted(path.name for path in run.model.parent.iterdir())


def edited(source: Path, target: Path, file: str, edit: Callable[[list[str]], list[str]]) -> Path:
    """A copy of the data with one file's lines changed."""
    shutil.copytree(source, target)
    path = target / file
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")
    return target


def test_a_run_pushes_a_model_that_beats_the_tutorial(first_run: Any) -> None:
    result = first_run.result
    assert first_run.outcome.code == 0
    assert result["blessed"] is True
    assert set(result["seconds"]) == COMPONENTS
    rows = result["rows"]
    assert {name: rows[name] for name in ("read", "rejected", "merged", "negatives", "catalogue")} == {
        "read": 100_000, "rejected": 0, "merged": 0, "negatives": 0, "catalogue": 1682,
    }  # fmt: skip
    assert result["rows"]["train"] + result["rows"]["eval"] == 100_000
    assert 19_000 < result["rows"]["eval"] < 21_000
    # The TFRS multi-task tutorial reaches 0.235 and 1.095 on this data.
    assert result["metrics"]["top_100_accuracy"] >= 0.27
    assert result["metrics"]["rmse"] <= 1.00
    assert (first_run.model / "saved_model.pb").is_file()
    assert first_run.model.name.isdigit()


def test_the_console_shows_each_component_and_the_log_keeps_the_rest(first_run: Any) -> None:
    for name in COMPONENTS:
        assert any(name in line and " s" in line for line in first_run.outcome.stderr.splitlines()), name
    assert len(first_run.outcome.stderr.splitlines()) < 30
    log = Path(first_run.result["log"])
    assert log.is_relative_to(first_run.workdir)
    assert len(log.read_text(errors="replace").splitlines()) > 1000


def test_the_metrics_are_those_of_the_exported_model_on_the_eval_rows(first_run: Any) -> None:
    import numpy as np
    import tensorflow as tf

    import components  # noqa: F401  (decides on Keras before TensorFlow is imported)

    (examples,) = (first_run.workdir / "artifacts").glob("InteractionExampleGen/examples/*")

    def read(split: str) -> list[bytes]:
        files = sorted(str(path) for path in (examples / f"Split-{split}").iterdir())
        return [record.numpy() for record in tf.data.TFRecordDataset(files, "GZIP")]

    def column(records: list[bytes], name: str) -> list[Any]:
        parsed = (tf.train.Example.FromString(record).features.feature[name] for record in records)
        return [feature.bytes_list.value[0] if feature.HasField("bytes_list") else feature.float_list.value[0]
                for feature in parsed]  # fmt: skip

    train, evaluation = read("train"), read("eval")
    model = tf.saved_model.load(str(first_run.model))
    outputs = [
        model.signatures["evaluate"](tf.constant(evaluation[start : start + 1000]))
        for start in range(0, len(evaluation), 1000)
    ]
    rating = np.concatenate([output["rating"].numpy() for output in outputs])
    hit = np.concatenate([output["top_100_hit"].numpy() for output in outputs])
    labels = np.array(column(evaluation, "rating"))
    metrics = first_run.result["metrics"]
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((rating - labels) ** 2)), abs=1e-5)
    assert metrics["top_100_accuracy"] == pytest.approx(hit.mean(), abs=1e-6)

    items, counts = np.unique(column(train, "item_id"), return_counts=True)
    popular = set(items[np.argsort(-counts)][:100])
    popularity = np.mean([item in popular for item in column(evaluation, "item_id")])
    assert metrics["top_100_accuracy"] > popularity, "a model that loses to 'most popular' is not worth serving"
    # Films that are equally popular may stand in another order.
    assert first_run.result["baselines"]["top_100_accuracy"] == pytest.approx(popularity, abs=0.003)
    assert 0.94 < first_run.result["baselines"]["rmse"] < 0.95


def test_every_gate_and_slice_is_in_the_result(first_run: Any) -> None:
    result = first_run.result
    assert set(result["baselines"]) == set(result["metrics"])
    gates = {(gate["metric"], gate["condition"], str(gate["slice"])) for gate in result["gates"]}
    assert gates >= {
        ("top_100_accuracy", "beats_baseline_by", "None"),
        ("top_100_accuracy_unseen", "beats_baseline_by", "{'user_activity': 'light'}"),
    }
    examples = {(part["name"], part["value"]): part["examples"] for part in result["slices"]}
    assert set(examples) >= {("gender", "F"), ("gender", "M"), ("item_popularity", "cold"), ("user_activity", "heavy")}
    assert sum(count for (name, _), count in examples.items() if name == "item_popularity") == result["examples"]
    assert examples[("gender", "F")] + examples[("gender", "M")] == result["rows"]["eval"]


def test_the_pushed_model_answers_in_the_loader_that_tensorflow_serving_uses(first_run: Any) -> None:
    import tensorflow as tf

    import components  # noqa: F401

    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(first_run.model))

        def call(name: str, **inputs: Any) -> Any:
            signature = meta.signature_def[name]
            feed = {signature.inputs[key].name: tf.make_ndarray(value) for key, value in signature.defaults.items()}
            feed |= {signature.inputs[key].name: value for key, value in inputs.items()}
            return session.run({key: tensor.name for key, tensor in signature.outputs.items()}, feed)

        answer = call("recommend", user_id=["42", "nobody"])
        assert answer["item_ids"].shape == (2, 100)
        assert len(set(answer["item_ids"][0])) == 100
        assert ((answer["ratings"] >= 1) & (answer["ratings"] <= 5)).all()
        example = tf.train.Example()
        example.features.feature["user_id"].bytes_list.value.append(b"42")
        example.features.feature["item_id"].bytes_list.value.append(b"242")
        evaluated = call("evaluate", examples=[example.SerializeToString()])
        rated = call("rate", user_id=["42"], item_id=["242"])
        assert evaluated["rating"] == pytest.approx(rated["rating"], abs=1e-5)


@pytest.fixture(scope="module")
def server(first_run: Any, serve: Callable[..., AbstractContextManager[dict[str, str]]]) -> Iterator[str]:
    """HOST:PORT of `tandem serve` on the pushed model."""
    with serve(first_run.model.parent) as addresses:
        yield addresses["grpc"]


def test_recommendations_come_over_grpc_and_leave_out_what_the_user_has_seen(
    first_run: Any, server: str, tandem: Callable[..., Any]
) -> None:
    outcome = tandem("recommend", "--user", "42", "--k", "10", "--target", server, "--json")
    assert outcome.code == 0, outcome.stderr
    items = outcome.json["items"]
    assert len(items) == 10
    assert [item["score"] for item in items] == sorted((item["score"] for item in items), reverse=True)
    titles = {row["item_id"]: row["title"] for row in csv.DictReader((first_run.data / "items.csv").open())}
    assert all(item["title"] == titles[item["item_id"]] for item in items)

    (examples,) = (first_run.workdir / "artifacts").glob("InteractionExampleGen/examples/*")
    import tensorflow as tf

    import components  # noqa: F401

    seen = set()
    for record in tf.data.TFRecordDataset([str(path) for path in (examples / "Split-train").iterdir()], "GZIP"):
        features = tf.train.Example.FromString(record.numpy()).features.feature
        if features["user_id"].bytes_list.value[0] == b"42":
            seen.add(features["item_id"].bytes_list.value[0].decode())
    assert len(seen) > 50
    assert not seen & {item["item_id"] for item in items}

    shown = tandem("recommend", "--user", "42", "--k", "3", "--target", server)
    assert items[0]["title"][:20] in shown.stdout


def test_an_unknown_user_gets_an_answer(server: str, tandem: Callable[..., Any]) -> None:
    outcome = tandem("recommend", "--user", "somebody new", "--target", server, "--json")
    assert outcome.code == 0, outcome.stderr
    assert len(outcome.json["items"]) == 10


def test_a_rating_is_predicted_over_grpc(server: str, tandem: Callable[..., Any]) -> None:
    outcome = tandem("rate", "--user", "42", "--item", "242", "--target", server, "--json")
    assert outcome.code == 0, outcome.stderr
    assert 1 <= outcome.json["rating"] <= 5


def test_the_second_run_reuses_what_has_not_changed(first_run: Any, tandem: Callable[..., Any]) -> None:
    outcome = first_run.again(tandem)
    assert outcome.code == 0, outcome.stderr
    result = outcome.json
    assert {"InteractionExampleGen", "StatisticsGen", "Transform", "Trainer", "InfraValidator"} <= set(result["cached"])
    assert outcome.stderr.count("cached") == len(result["cached"])
    assert result["metrics"] == pytest.approx(first_run.result["metrics"])
    assert result["last_blessed_metrics"] == pytest.approx(first_run.result["metrics"])
    assert result["pushed_model"] == first_run.result["pushed_model"], "the same model was pushed twice"


def test_a_model_that_misses_an_absolute_gate_is_not_pushed(first_run: Any, tandem: Callable[..., Any]) -> None:
    before = versions(first_run)
    outcome = first_run.again(tandem, "--set", "gates.0.at_least=0.99")
    assert outcome.code == 3
    assert outcome.json["blessed"] is False
    assert outcome.json["pushed_model"] is None
    failed = [gate for gate in outcome.json["gates"] if not gate["passed"]]
    assert [(gate["metric"], gate["condition"], gate["limit"]) for gate in failed] == [
        ("top_100_accuracy", "at_least", 0.99)
    ]
    assert versions(first_run) == before


def test_a_model_that_is_worse_than_the_last_blessed_one_is_not_pushed(
    first_run: Any, tandem: Callable[..., Any]
) -> None:
    before = versions(first_run)
    outcome = first_run.again(
        tandem, "--set", "training.epochs=1", "--set", "gates.0.may_drop=0.001", "--set", "gates.1.may_rise=0.001"
    )
    assert outcome.code == 3, outcome.stdout
    assert {(gate["metric"], gate["condition"]) for gate in outcome.json["gates"] if not gate["passed"]} >= {
        ("top_100_accuracy", "may_drop")
    }
    assert versions(first_run) == before


def test_an_anomaly_stops_the_run_before_training(first_run: Any, tandem: Callable[..., Any], tmp_path: Path) -> None:
    before = versions(first_run)
    data = edited(
        first_run.data, tmp_path / "data", "users.csv", lambda lines: [line.replace(",M,", ",X,") for line in lines]
    )
    outcome = first_run.again(tandem, "--data", data)
    assert outcome.code == 2
    assert "gender" in outcome.json["error"]
    assert "X" in outcome.json["error"]
    assert "schema.pbtxt" in outcome.json["error"]
    assert "Trainer" not in outcome.stderr.split("tandem:")[0]
    assert versions(first_run) == before


def test_an_unparsable_number_is_named_with_file_and_line(
    first_run: Any, tandem: Callable[..., Any], tmp_path: Path
) -> None:
    def spoil(lines: list[str]) -> list[str]:
        user, item, _, timestamp = lines[500].split(",")
        return [*lines[:500], f"{user},{item},four,{timestamp}", *lines[501:]]

    before = versions(first_run)
    data = edited(first_run.data, tmp_path / "data", "interactions.csv", spoil)
    outcome = first_run.again(tandem, "--data", data)
    assert outcome.code == 2
    assert "interactions.csv:501" in outcome.json["error"]
    assert "four" in outcome.json["error"]
    assert versions(first_run) == before


def test_a_killed_run_leaves_nothing_that_the_next_one_trips_over(
    movielens: Path, first_run: Any, tandem: Callable[..., Any]
) -> None:
    before = versions(first_run)
    process = subprocess.Popen(
        [Path(sys.executable).parent / "tandem", "run", "schemas/movielens", "--data", movielens,
         "--workdir", first_run.workdir, "--set", "training.seed=7"],
        cwd=Path(__file__).resolve().parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "Transform" in line:
            break
    process.kill()
    process.wait()
    assert versions(first_run) == before
    outcome = first_run.again(tandem)
    assert outcome.code == 0, outcome.stderr
    assert "Trainer" in outcome.json["cached"]
