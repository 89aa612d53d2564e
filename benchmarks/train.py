"""Compare training of the preset `tutorial` with the loop of TensorFlow Recommenders' tutorial.

`make bench-train` takes MovieLens-100K through the DAG up to Transform. It then trains the same model alternately, each
time in a fresh process: with `components.trainer.fitting.training_loop.train`, and as in the tutorial
(https://www.tensorflow.org/recommenders/examples/multitask): strings in memory, StringLookup layers in the model,
`.shuffle(100_000).batch(8_192).cache()`, Keras's `fit`, FactorizedTopK off. Rows, batch size and optimizer are the
same, but the pipeline's training shuffles each epoch again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMA_DIR = ROOT / "schemas" / "movielens"
PRESET = "tutorial"
SIDES = {"tutorial": "the tutorial's own loop", "pipeline": "the pipeline's training"}
# The last component that both sides use.
LAST = "Transform"
PLACES = "places.json"


class Enough(Exception):
    """Stops the run after `LAST`."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with MovieLens-100K, if it exists already")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each training; at least 4")
    parser.add_argument("--repetitions", type=int, default=5, help="trainings of each side, alternating")
    parser.add_argument("--at-least", type=float, default=1.5, help="minimum ratio; below it the exit code is 1")
    parser.add_argument("--xla", action="store_true", help="with training.xla: true")
    parser.add_argument("--prepared", type=Path, help="folder of transformed data, to write or to reuse")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.epochs < 4:
        parser.error(f"--epochs: expected at least 4, got {arguments.epochs}; the first ones trace and warm up")
    if arguments.one:
        what, folder = arguments.one[0], Path(arguments.one[1])
        found = prepare(folder, arguments.data) if what == "prepare" else measure(what, folder, arguments)
        print(json.dumps(found))
        return 0

    with tempfile.TemporaryDirectory(prefix="bench-train-") as temporary:
        folder = str(arguments.prepared.resolve() if arguments.prepared else temporary)
        if not Path(folder, PLACES).is_file():
            in_fresh_process("prepare", folder, arguments)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for number in range(arguments.repetitions):
            # Alternate the order: the second one may find a warmer or busier machine.
            for side in list(SIDES) if number % 2 == 0 else reversed(SIDES):
                runs[side].append(in_fresh_process(side, folder, arguments))
    rows = runs["pipeline"][0]["rows"]
    figures = summary(rows, runs, arguments.epochs)
    print(f"{rows:,} interactions of MovieLens-100K in batches of {runs['pipeline'][0]['batch_size']:,} on "
          f"{runs['pipeline'][0]['device']}; {arguments.repetitions} trainings of {arguments.epochs} epochs each, "
          f"median and range\n")  # fmt: skip
    print(f"{'interactions per second':28}{'steady epochs':>28}{'3 epochs, tracing included':>32}")
    for side, title in SIDES.items():
        print(f"{title:28}{shown(figures[side]['steady']):>28}{shown(figures[side]['whole']):>32}")
    steady, whole = figures["ratio"]["steady"], figures["ratio"]["whole"]
    print(f"\n{steady:.2f} times the tutorial's throughput in steady epochs (minimum {arguments.at_least:g}), "
          f"{whole:.2f} times over the tutorial's 3 epochs with building and tracing the model")  # fmt: skip
    figures["ratios"] = [
        {"what": "training, steady epochs, against the tutorial's loop", "ratio": steady,
         "at_least": arguments.at_least},
        {"what": "training, 3 epochs with tracing, against the tutorial's loop", "ratio": whole, "at_least": None},
    ]  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | {"runs": runs}, indent=1) + "\n")
    return 0 if steady >= arguments.at_least else 1


def summary(rows: int, runs: Mapping[str, list[dict[str, Any]]], epochs: int) -> dict[str, Any]:
    """Interactions per second: from the third epoch on, and in total up to the end of the third."""
    figures: dict[str, Any] = {
        side: {
            "steady": [rows / statistics.median(run["epochs"][2:]) for run in each],
            "whole": [3 * rows / (run["seconds"] - sum(run["epochs"][3:])) for run in each],
        }
        for side, each in runs.items()
    }
    figures["ratio"] = {
        # Ratios of adjacent runs, because a busy machine slows both.
        kind: statistics.median(
            ours / theirs for ours, theirs in zip(figures["pipeline"][kind], figures["tutorial"][kind], strict=True)
        )
        for kind in ("steady", "whole")
    }
    return figures | {"rows": rows, "epochs": epochs}


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} – {max(values):,.0f})"


def in_fresh_process(what: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", what, folder, "--epochs", str(arguments.epochs)]
    command += ["--data", str(arguments.data)] if arguments.data else []
    command += ["--xla"] if arguments.xla else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def start() -> None:
    """Prepare a process before it imports the project."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, str(ROOT))
    import components  # noqa: F401  (first, because it decides which Keras TensorFlow imports)


def recipe_of(epochs: int, xla: bool = False) -> Any:
    from recipe import load_recipe

    overrides = [f"training.epochs={epochs}", f"training.xla={str(xla).lower()}"]
    return load_recipe(SCHEMA_DIR, overrides, preset=PRESET)


def prepare(folder: Path, data: Path | None) -> dict[str, Any]:
    """Run the DAG up to Transform and write the paths of its outputs."""
    start()
    from tfx import v1 as tfx

    from commands.movielens import write_movielens
    from pipeline.beam import DIRECT
    from pipeline.dag import compile_dag, create_pipeline
    from pipeline.runners import launch
    from recipe import load_schema

    if data is None:
        data = folder / "data"
        write_movielens(data)
    recipe = recipe_of(epochs=4)
    dag = create_pipeline(
        recipe,
        load_schema(SCHEMA_DIR, recipe),
        data_root=str(data),
        pipeline_root=str(folder / "artifacts"),
        metadata=tfx.orchestration.metadata.sqlite_metadata_connection_config(str(folder / "metadata.sqlite")),
        beam_pipeline_args=DIRECT.pipeline_args(),
        last="Evaluator",
    )
    runs: list[launch.ComponentRun] = []

    def started(name: str) -> None:
        if runs and runs[-1].name == LAST:
            raise Enough

    with contextlib.suppress(Enough):
        launch.run(compile_dag(dag), "bench-train", started=started, finished=runs.append)
    outputs = runs[-1].outputs
    places = {name: outputs[name][0].uri for name in ("transform_graph", "transformed_examples")}
    (folder / PLACES).write_text(json.dumps(places))
    return {}


def training_data(folder: Path, recipe: Any) -> Any:
    """The train split as the Trainer reads it, and Transform's output."""
    import tensorflow_transform as tft

    from components.trainer.data.training_data import read_training_data

    places = json.loads((folder / PLACES).read_text())
    transform_output = tft.TFTransformOutput(places["transform_graph"])
    splits = [[os.path.join(places["transformed_examples"], f"Split-{name}", "*")] for name in ("train", "catalogue")]
    trainer = recipe.for_trainer()
    return read_training_data(*splits, transform_output, trainer.features, trainer.columns), transform_output


def measure(side: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train in this process; building and tracing the model are measured, imports and reading the data are not.

    Returns:
        Seconds of it all and of each epoch, the first one with tracing; the batch size and the device.
    """
    start()
    import tensorflow as tf

    recipe = recipe_of(arguments.epochs, arguments.xla)
    data, transform_output = training_data(folder, recipe)
    run = tutorial if side == "tutorial" else pipeline
    begin = time.perf_counter()
    epochs = run(recipe, data, transform_output)
    seconds = time.perf_counter() - begin
    gpus = tf.config.list_physical_devices("GPU")
    device = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else f"{os.cpu_count()} cores"
    return {
        "seconds": seconds,
        "epochs": epochs,
        "rows": len(data.labels),
        "batch_size": recipe.training.batch_size,
        "device": device,
    }


def pipeline(recipe: Any, data: Any, transform_output: Any) -> list[float]:
    from components.trainer.fitting.training_loop import train

    _, curves = train(recipe.for_trainer(), data, transform_output)
    return curves["seconds"]


def tutorial(recipe: Any, data: Any, transform_output: Any) -> list[float]:
    """Train the tutorial's joint model in its own loop, with the rows, widths, batch and optimizer of the preset."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    training, model_recipe = recipe.training, recipe.model
    trainer = recipe.for_trainer()
    users = np.array([b"", *transform_output.vocabulary_by_name(data.user_feature)])
    title = next(column for column in data.display)
    titles = data.display[title]
    assert trainer.training.optimizer.kind == "adagrad"
    ratings = tf.data.Dataset.from_tensor_slices(
        {
            "user_id": users[data.users],
            "movie_title": titles[data.items],
            "user_rating": data.labels,
        }
    )

    class MovielensModel(tfrs.models.Model):
        def __init__(self) -> None:
            super().__init__()
            width = model_recipe.embedding_dim
            movies, people = np.unique(titles[1:]), users[1:]
            self.movie_model = tf.keras.Sequential(
                [
                    tf.keras.layers.StringLookup(vocabulary=movies, mask_token=None),
                    tf.keras.layers.Embedding(len(movies) + 1, width),
                ]
            )
            self.user_model = tf.keras.Sequential(
                [
                    tf.keras.layers.StringLookup(vocabulary=people, mask_token=None),
                    tf.keras.layers.Embedding(len(people) + 1, width),
                ]
            )
            self.rating_model = tf.keras.Sequential(
                [
                    *(tf.keras.layers.Dense(units, activation="relu") for units in model_recipe.rating_head.layers),
                    tf.keras.layers.Dense(1),
                ]
            )
            self.rating_task = tfrs.tasks.Ranking(
                loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError()]
            )
            self.retrieval_task = tfrs.tasks.Retrieval()

        def call(self, features: Any) -> Any:
            user_embeddings = self.user_model(features["user_id"])
            movie_embeddings = self.movie_model(features["movie_title"])
            together = tf.concat([user_embeddings, movie_embeddings], axis=1)
            return user_embeddings, movie_embeddings, self.rating_model(together)

        def compute_loss(self, features: Any, training: bool = False) -> Any:
            labels = features.pop("user_rating")
            user_embeddings, movie_embeddings, predictions = self(features)
            rating_loss = self.rating_task(labels=labels, predictions=predictions)
            retrieval_loss = self.retrieval_task(user_embeddings, movie_embeddings)
            return model_recipe.rating_weight * rating_loss + model_recipe.retrieval_weight * retrieval_loss

    class Clock(tf.keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds.append(time.perf_counter() - self.begin)

    tf.random.set_seed(training.seed)
    model = MovielensModel()
    model.compile(optimizer=tf.keras.optimizers.Adagrad(training.optimizer.learning_rate))
    clock = Clock()
    model.fit(
        ratings.shuffle(100_000).batch(training.batch_size).cache(),
        epochs=training.epochs,
        callbacks=[clock],
        verbose=0,
    )
    return clock.seconds


if __name__ == "__main__":
    sys.exit(main())
