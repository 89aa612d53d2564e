"""The training loop through `train` and `run_fn`: length, curves, early stopping, backups and devices."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from hypothesis import given

from components.trainer import run_fn as trainer
from components.trainer.data.training_data import TrainingData
from components.trainer.fitting import backup, optimizers
from components.trainer.fitting.backup import fingerprint
from components.trainer.fitting.callbacks import TrainingDiverged
from components.trainer.fitting.curves import best_epoch, with_epoch
from components.trainer.fitting.training_loop import train
from components.trainer.fitting.validation import ValidationMetrics
from components.trainer.model.recommender import TwoTaskRecommender
from components.trainer.run_fn import run_fn
from recipe.trainer import TrainerRecipe
from recipe.training import EarlyStopping

World = Any
ROOT = Path(__file__).resolve().parents[3]

# Few features, because each model is traced again and the tests are about the loop.
LIGHT = {
    "features": {"query": [{"column": "customer", "kind": "id"}], "candidate": [{"column": "item", "kind": "id"}]},
    "model": {"rating_head": {"kind": "dot"}},
}
ROWS = 440
SLICE = {"fraction": 0.25, "seed": 4}


def light(world: World, model: Any = None, **keys: Any) -> TrainerRecipe:
    changes = {"training": {"epochs": 3, "batch_size": 128, **keys}, **LIGHT}
    return world.recipe(**changes | ({"model": model} if model else {}))


def weights(model: Any) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.trainable_variables]


def test_curves_have_a_row_per_epoch(world: World) -> None:
    recipe = light(world)
    _, curves = train(recipe, world.data(recipe), world.transform_output)
    assert {len(values) for values in curves.values()} == {3}
    assert all(np.isfinite(values).all() for values in curves.values())
    assert curves["epoch"] == [1, 2, 3]
    assert curves["steps"] == [4, 8, 12]
    assert curves["kept"] == [0, 0, 1]
    assert curves["learning_rate"] == pytest.approx([0.02] * 3)
    assert curves["loss"][-1] < curves["loss"][0]
    total = np.add(curves["retrieval_loss"], curves["rating_loss"])
    np.testing.assert_allclose(curves["loss"], total, rtol=1e-4)
    assert not [name for name in curves if name.startswith("validation_")]


def test_steps_may_end_within_an_epoch(world: World) -> None:
    recipe = light(world, steps=10, optimizer={"decay": "cosine"})
    _, curves = train(recipe, world.data(recipe), world.transform_output)
    assert curves["steps"] == [4, 8, 10]
    # The schedule is for ten steps: the last one's rate is that of nine tenths of the way.
    assert curves["learning_rate"][-1] == pytest.approx(0.02 * (1 + np.cos(np.pi * 0.9)) / 2, rel=1e-4)


@pytest.mark.parametrize(("limit", "held"), [(100_000, ROWS // 4), (40, 40)])
def test_validation_rows_are_not_trained_on(world: World, limit: int, held: int) -> None:
    recipe = light(world, validation=SLICE | {"max_rows": limit}, batch_size=10)
    _, curves = train(recipe, world.data(recipe), world.transform_output)
    assert curves["steps"][0] == (ROWS - held) // 10
    for name in ("top_100_accuracy", "top_100_accuracy_unseen", "rmse"):
        assert len(curves[f"validation_{name}"]) == 3


def measured(world: World, recipe: TrainerRecipe, model: Any, data: TrainingData) -> dict[str, float]:
    held = data.hold_out(SLICE["fraction"], "random", int(SLICE["seed"]))[1]
    return ValidationMetrics(model, held).compute()


def test_early_stopping_restores_the_best_epoch(world: World) -> None:
    # Without dropout and with large steps, the biases overfit within a few epochs.
    recipe = light(
        world, epochs=40, batch_size=32, validation=SLICE, early_stopping={"metric": "rmse", "patience": 2},
        optimizer={"learning_rate": 0.05},
    )  # fmt: skip
    data = world.data(recipe)
    model, curves = train(recipe, data, world.transform_output)
    values = curves["validation_rmse"]
    best = int(np.argmin(values))
    assert best == len(values) - 3 and len(values) < 40
    assert curves["kept"] == [float(index == best) for index in range(len(values))]
    assert measured(world, recipe, model, data)["rmse"] == pytest.approx(values[best], rel=1e-5)
    assert values[-1] > values[best] + 1e-4


@pytest.mark.parametrize("optimizer", [{"ema": 0.9}, {"kind": "radam", "lookahead": {"steps": 3}}])
def test_the_trained_model_has_the_validated_weights(world: World, optimizer: Any) -> None:
    recipe = light(world, validation=SLICE, optimizer=optimizer)
    plain = light(world, validation=SLICE, optimizer={"kind": optimizer.get("kind", "adam")})
    data = world.data(recipe)
    model, curves = train(recipe, data, world.transform_output)
    assert measured(world, recipe, model, data)["rmse"] == pytest.approx(curves["validation_rmse"][-1], rel=1e-5)
    _, others = train(plain, data, world.transform_output)
    # Averages follow the weights; they do not lead the training.
    if "ema" in optimizer:
        np.testing.assert_allclose(others["loss"], curves["loss"], rtol=1e-3)
    assert abs(others["validation_rmse"][-1] - curves["validation_rmse"][-1]) > 1e-5


def test_rating_learning_rate_applies_to_the_rating_head_only(world: World) -> None:
    recipe = light(world, optimizer={"kind": "adagrad", "learning_rate": 0.5, "rating_learning_rate": 1e-9})
    data = world.data(recipe)
    tf.keras.utils.set_random_seed(recipe.training.seed)
    start = TwoTaskRecommender(
        recipe.model, recipe.features.query, recipe.features.candidate, data, world.transform_output
    )
    model, _ = train(recipe, data, world.transform_output)
    for before, after in zip(start.rating_head.trainable_variables, model.rating_head.trainable_variables, strict=True):
        np.testing.assert_allclose(before.numpy(), after.numpy(), atol=1e-5)
    moved = [
        np.abs(before.numpy() - after.numpy()).max()
        for before, after in zip(
            start.query_tower.trainable_variables, model.query_tower.trainable_variables, strict=True
        )
    ]
    assert min(moved) > 1e-3


def test_divergence_names_the_step_and_remedies(world: World, tmp_path: Path) -> None:
    recipe = light(world, optimizer={"kind": "adam", "learning_rate": 1e30})
    arguments = fn_args(world, recipe, tmp_path)
    with pytest.raises(
        TrainingDiverged, match=r"^Loss became NaN or infinite at step 2 \(epoch 1 of 3\); nothing was exported\."
    ) as error:
        run_fn(SimpleNamespace(**arguments))
    for remedy in ("learning_rate below 1e+30", "clip_norm: 1", "warm_up: 0.1"):
        assert remedy in str(error.value)
    assert not Path(arguments["serving_model_dir"]).exists()
    assert not backups(tmp_path)


def fn_args(world: World, recipe: TrainerRecipe, folder: Path, execution: int = 1, code: str = "") -> dict[str, Any]:
    """The arguments from TFX for the `execution`th Trainer of a pipeline."""
    return {
        "custom_config": {"recipe": recipe.model_dump_json(), "code": code},
        "hyperparameters": None,
        "schema_path": str(world.folder / "schema.pbtxt"),
        "transform_output": str(world.folder / "transform"),
        "train_files": world.files["train"],
        "eval_files": world.files["catalogue"],
        "serving_model_dir": str(folder / "Trainer" / "model" / str(execution) / "Format-Serving"),
        "model_run_dir": str(folder / "Trainer" / "model_run" / str(execution)),
    }


def backups(folder: Path) -> list[Path]:
    return sorted((folder / "Trainer" / backup.BACKUPS).glob("*"))


@pytest.mark.slow
def test_backups_unused_for_a_week_are_removed_by_the_next_training(world: World, tmp_path: Path) -> None:
    for name, days in {"forgotten": 8, "of-yesterday": 1}.items():
        file = tmp_path / "Trainer" / backup.BACKUPS / name / "chief" / "ckpt-3.index"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights")
        os.utime(file, (time.time() - days * 86_400,) * 2)
    (tmp_path / "Trainer" / backup.BACKUPS / "just-begun").mkdir()
    arguments = fn_args(world, light(world, epochs=1), tmp_path)
    run_fn(SimpleNamespace(**arguments))
    assert [folder.name for folder in backups(tmp_path)] == ["just-begun", "of-yesterday"]
    assert (tmp_path / "Trainer" / backup.BACKUPS / "of-yesterday" / "chief" / "ckpt-3.index").exists()
    assert Path(arguments["serving_model_dir"]).exists()


CHILD = """
import json, sys
from types import SimpleNamespace
import components
from absl import logging
from components.trainer.fitting import backup
from components.trainer.run_fn import run_fn

logging.set_verbosity(logging.INFO)
backup.BACKUP_SECONDS = 0.0
run_fn(SimpleNamespace(**json.loads(sys.argv[1])))
"""


def start_child(arguments: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "serving" / "client"), os.environ.get("PYTHONPATH", "")])
    with open(log, "wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(arguments)],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=stream, stderr=stream,
        )  # fmt: skip


def epochs_logged(log: Path) -> list[int]:
    return [int(number) for number in re.findall(r"Epoch (\d+) of 60:", log.read_text())]


@pytest.mark.slow
def test_a_killed_training_resumes_from_its_backup(world: World, tmp_path: Path) -> None:
    recipe = light(
        world, epochs=60, validation=SLICE, early_stopping={"metric": "rmse", "patience": 60},
        optimizer={"ema": 0.9, "decay": "cosine"},
    )  # fmt: skip
    log = tmp_path / "first.txt"
    first = start_child(fn_args(world, recipe, tmp_path, 1), log)
    deadline = time.monotonic() + 240
    while len(epochs_logged(log)) < 4:
        assert first.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    (left,) = backups(tmp_path)
    before = json.loads((left / "curves.json").read_text())
    assert 3 <= len(before["epoch"]) < 60
    assert not Path(fn_args(world, recipe, tmp_path, 1)["serving_model_dir"]).exists()

    # Another configuration has another backup, and neither takes nor removes this one.
    other = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": 9, "epochs": 2})})
    run_fn(SimpleNamespace(**fn_args(world, other, tmp_path, 2)))
    assert json.loads((tmp_path / "Trainer/model_run/2/curves.json").read_text())["epoch"] == [1, 2]
    assert backups(tmp_path) == [left]

    log = tmp_path / "second.txt"
    arguments = fn_args(world, recipe, tmp_path, 3)
    assert start_child(arguments, log).wait(300) == 0, log.read_text()[-3000:]
    (resumed,) = re.findall(r"Resuming training after epoch (\d+)", log.read_text())
    assert 3 <= int(resumed) <= len(before["epoch"])
    assert epochs_logged(log) == list(range(int(resumed) + 1, 61))
    curves = json.loads((tmp_path / "Trainer/model_run/3/curves.json").read_text())
    assert curves["epoch"] == list(range(1, 61))
    assert {len(values) for values in curves.values()} == {60}
    for name, values in before.items():
        if name != "kept":
            assert curves[name][: int(resumed)] == values[: int(resumed)], name
    # Optimizer, schedule and average went on too: the loss did not start again from above.
    assert curves["loss"][int(resumed)] < curves["loss"][0]
    assert curves["learning_rate"][-1] < 1e-4
    assert scalars(tmp_path / "Trainer/model_run/3", "loss") == pytest.approx(
        dict(zip(range(1, 61), curves["loss"], strict=True))
    )
    assert Path(arguments["serving_model_dir"]).exists()
    assert not backups(tmp_path)


def scalars(folder: Path, name: str) -> dict[int, float]:
    """A scalar of TensorBoard's event files by step."""
    found = {}
    for path in folder.glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == name:
                    found[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_a_training_killed_before_its_export_is_not_repeated(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "BACKUP_SECONDS", 0.0)
    recipe = light(world, epochs=6, validation=SLICE, early_stopping={"metric": "rmse", "patience": 2},
                   optimizer={"ema": 0.9, "learning_rate": 0.5})  # fmt: skip
    data = world.data(recipe)
    folder = str(tmp_path / "backup")
    model, curves = train(recipe, data, world.transform_output, backup_dir=folder)
    again, same = train(recipe, data, world.transform_output, backup_dir=folder)
    assert same == curves
    for one, other in zip(weights(model), weights(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_model_run_has_curves_events_and_a_checkpoint_and_the_log_a_line_per_epoch(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = light(world, validation=SLICE)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    try:
        run_fn(SimpleNamespace(**fn_args(world, recipe, tmp_path)))
    finally:
        logging.set_verbosity(verbosity)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Epoch ")]
    assert [line.split(":")[0] for line in lines] == ["Epoch 1 of 3", "Epoch 2 of 3", "Epoch 3 of 3"]
    assert all("validation_rmse" in line and "loss" in line for line in lines)
    run = tmp_path / "Trainer/model_run/1"
    curves = json.loads((run / "curves.json").read_text())
    for name in ("loss", "validation_rmse", "validation_top_100_accuracy"):
        assert scalars(run, name) == pytest.approx(dict(zip([1, 2, 3], curves[name], strict=True)))
    assert tf.train.list_variables(str(run / trainer.CHECKPOINT))


def test_fingerprint_covers_everything_a_training_depends_on(world: World) -> None:
    recipe = light(world)
    data = world.data(recipe)
    same = fingerprint(recipe, world.data(recipe), "1")
    assert fingerprint(recipe, data, "1") == same
    served = recipe.model_copy(update={"serving": recipe.serving.model_copy(update={"k": 7})})
    assert fingerprint(served, data, "1") == same
    assert fingerprint(recipe, data, "2") != same
    assert fingerprint(light(world, epochs=4), data, "1") != same
    rows = data.labels.copy()
    rows[3] += 1
    for changed in ({"labels": rows}, {"times": data.times + 1}, {"query": {"other": data.users}}):
        assert fingerprint(recipe, dataclasses.replace(data, **changed), "1") != same


def test_mixed_precision_trains_similarly_and_exports_single_precision(world: World) -> None:
    recipe, plain = light(world, mixed_precision=True, epochs=6), light(world, epochs=6)
    data = world.data(recipe)
    model, curves = train(recipe, data, world.transform_output)
    _, expected = train(plain, data, world.transform_output)
    np.testing.assert_allclose(curves["loss"], expected["loss"], rtol=0.05)
    assert curves["loss"] != expected["loss"]
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}
    assert {variable.dtype for variable in model.trainable_variables} == {tf.float32}


@pytest.mark.slow
def test_xla_trains_the_same(world: World) -> None:
    model = {"id_dropout": 0, "rating_head": {"kind": "dot"}}
    data = world.data(light(world))
    for optimizer in ({"kind": "adagrad"}, {"kind": "radam", "lookahead": {"steps": 2}, "ema": 0.9, "clip_norm": 1}):
        (_, expected), (_, found) = (
            train(light(world, model, xla=xla, optimizer=optimizer), data, world.transform_output)
            for xla in (False, True)
        )
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-4)


DISTRIBUTED = """
import json, sys
import components
import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import tensorflow_transform as tft
from components.trainer.fitting.training_loop import train
from components.trainer.data.training_data import read_training_data
from recipe.trainer import TrainerRecipe

from components.trainer.fitting import optimizers

optimizers.DENSE_ROWS = int(sys.argv[2])
recipe_json, train_files, catalogue_files, transform_output = json.loads(sys.argv[1])
recipe, transform_output = TrainerRecipe.model_validate_json(recipe_json), tft.TFTransformOutput(transform_output)
data = read_training_data(train_files, catalogue_files, transform_output, recipe.features, recipe.columns)
found = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    model, curves = train(recipe, data, transform_output, strategy=strategy)
    replicas = strategy.num_replicas_in_sync
    found.append([replicas, curves, [variable.numpy().tolist() for variable in model.trainable_variables]])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dense_rows", [optimizers.DENSE_ROWS, 1], ids=["small tables", "large tables"])
def test_two_devices_train_as_one(world: World, dense_rows: int) -> None:
    # The rating loss is a mean over rows, so two halves of a batch are worth the whole; an in-batch softmax is not.
    # Adagrad, because Adam hardly sees how large a gradient is.
    model = {"id_dropout": 0, "retrieval_weight": 0, "rating_head": {"kind": "dot"}}
    recipe = light(world, model, batch_size=110, validation=SLICE | {"fraction": 0.5},
                   optimizer={"kind": "adagrad", "ema": 0.5})  # fmt: skip
    files = [world.files["train"], world.files["catalogue"], str(world.folder / "transform")]
    path = os.pathsep.join([str(ROOT), str(ROOT / "serving" / "client"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED, json.dumps([recipe.model_dump_json(), *files]), str(dense_rows)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (one, curves, weights_of_one), (two, others, weights_of_two) = json.loads(done.stdout.splitlines()[-1])
    assert (one, two) == (1, 2)
    for name in ("steps", "loss", "rating_loss", "validation_rmse"):
        np.testing.assert_allclose(curves[name], others[name], rtol=1e-3)
    for left, right in zip(weights_of_one, weights_of_two, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-2, atol=1e-4)


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    metric=st.sampled_from(["rmse", "top_100_accuracy"]),
    min_delta=st.sampled_from([0.0, 0.1]),
)
def test_best_epoch_improves_on_earlier_ones_and_is_close_to_the_best(
    values: list[float], metric: Any, min_delta: float
) -> None:
    best = best_epoch(values, EarlyStopping(metric=metric, min_delta=min_delta))
    better = max if metric == "top_100_accuracy" else min
    assert abs(better(values) - values[best]) <= min_delta + 1e-12
    if min_delta == 0:
        assert best == values.index(better(values))


def test_an_epoch_with_other_columns_is_rejected() -> None:
    with pytest.raises(ValueError, match="expected the columns"):
        with_epoch({"loss": [1.0]}, {"rmse": 1.0})


@pytest.mark.parametrize("model", [{}, {"id_dropout": 0.3}, {"cold_start_dropout": 0.3}], ids=str)
def test_untrained_oov_embeddings_are_the_mean_of_trained_ones(
    world: World, data: TrainingData, model: dict[str, Any]
) -> None:
    bare = {"projection": False, "combine": "sum"}
    towers = {
        "query_tower": {**bare, "features": ["customer_id"]},
        "candidate_tower": {**bare, "features": ["item_id"]},
        "retrieval": {"item_bias": False},
    }
    recipe = world.recipe(model={"id_dropout": 0, **towers, **model}, training={"epochs": 2})
    trained, _ = train(recipe, data, world.transform_output)
    everybody = {name: tf.constant(values[:1].repeat(data.user_count + 1, 0)) for name, values in data.query.items()}
    everybody[data.user_feature] = tf.range(data.user_count + 1, dtype=tf.int64)
    users = trained.encode_query(everybody).retrieval.numpy()
    average = np.bincount(data.users, minlength=len(users)) @ users / len(data.users)
    assert np.allclose(users[0], average, atol=1e-5) is (not model)
    items = trained.encode_items(tf.range(data.item_count + 1, dtype=tf.int64)).retrieval.numpy()
    average = data.item_frequencies() @ items / len(data.items)
    assert np.allclose(items[0], average, atol=1e-5) is ("id_dropout" not in model)
