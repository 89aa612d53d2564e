"""`run_fn` of the Trainer: transformed examples in, a trained and exported model out."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from absl import logging
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.utils import io_utils

from components.trainer.data.batches import batches
from components.trainer.data.training_data import TrainingData, id_feature, read_training_data
from components.trainer.export import ServedRecommender, label_bounds, save
from components.trainer.fitting.curves import CURVES_FILE, VALIDATION, Curves, best_epoch, with_epoch
from components.trainer.fitting.hyperparameters import found_values
from components.trainer.fitting.optimizers import CompositeOptimizer, build_optimizer
from components.trainer.fitting.validation import Validation
from components.trainer.model.recommender import TwoTaskRecommender
from recipe.errors import BadInput
from recipe.trainer import TrainerRecipe
from recipe.training import Training

WARMUP_USERS = 8

BACKUPS = "unfinished"
"""Folder beside the Trainer's model runs for what trainings that were killed go on from."""
BACKUP_SECONDS = 20.0
"""A training that was killed repeats at most about this much, or one epoch; epochs of a second cost no backup each."""
BACKUP_DAYS = 7
"""A backup that nobody has gone on from for so long is removed by the next training that ends."""
CHECKPOINT = "checkpoint"
"""What the weights of the trained model are called in its model run: a TensorFlow checkpoint."""


class TrainingDiverged(BadInput):
    """The loss is no number any more, so that nothing was exported."""


def run_fn(fn_args: FnArgs) -> None:
    """Trains the recipe's model on the split `train` and exports it.

    The eval split is never read here: it stays unseen until the Evaluator measures the exported model on it. The slot
    that TFX calls `eval_files` carries the catalogue. The model run gets the curves, TensorBoard's event files and a
    checkpoint. A Trainer that was killed leaves a backup beside its model run, under a name that tells recipe, data and
    code; the next one that trains the very same goes on from there.

    Args:
        fn_args: From TFX; `custom_config["recipe"]` is a `TrainerRecipe` as JSON, `custom_config["code"]` what tells
            one version of the code from another, and `hyperparameters` what the Tuner found, where there is one.

    Raises:
        TrainingDiverged: The loss became infinite or not a number.
    """
    recipe = TrainerRecipe.model_validate_json(fn_args.custom_config["recipe"])
    if fn_args.hyperparameters is not None:
        found = found_values(fn_args.hyperparameters)
        logging.info("The Tuner found %s", found)
        recipe = recipe.with_values(found)
    schema = io_utils.parse_pbtxt_file(fn_args.schema_path, schema_pb2.Schema())
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    data = read_training_data(
        fn_args.train_files,
        fn_args.eval_files,
        transform_output,
        recipe.features,
        recipe.columns,
        negatives=recipe.negatives is not None,
    )
    logging.info(
        "Training on %d interactions of %d users with %d items, and %d sampled negatives.",
        *(data.positive.sum(), data.user_count, data.item_count, (~data.positive).sum()),
    )
    run_dir = fn_args.model_run_dir.rstrip("/")
    name = fingerprint(recipe, data, str(fn_args.custom_config.get("code", "")))
    # TFX gives each execution a model run of its own; the folder that holds them all stays.
    backup_dir = os.path.join(os.path.dirname(os.path.dirname(run_dir)), BACKUPS, name)
    bounds = label_bounds(schema, recipe.columns.label)
    model, curves = train(recipe, data, transform_output, bounds=bounds, run_dir=run_dir, backup_dir=backup_dir)
    # What is served knows all of train: seen items and histories include the validation slice.
    served = ServedRecommender(model, data, transform_output, recipe, schema)
    users = transform_output.vocabulary_by_name(data.user_feature)[:WARMUP_USERS]
    items = transform_output.vocabulary_by_name(id_feature(recipe.features.candidate, recipe.columns.item_id).name)
    save(served, fn_args.serving_model_dir, users, items[:WARMUP_USERS])
    io_utils.write_string_file(os.path.join(run_dir, CURVES_FILE), json.dumps(curves, indent=1))
    tf.train.Checkpoint(model=model).write(os.path.join(run_dir, CHECKPOINT))
    # Only now: a Trainer that is killed while it exports need not train again.
    _remove(backup_dir)
    _remove_forgotten(os.path.dirname(backup_dir))


def train(
    recipe: TrainerRecipe,
    data: TrainingData,
    transform_output: tft.TFTransformOutput,
    *,
    bounds: tuple[float, float] | None = None,
    run_dir: str | None = None,
    backup_dir: str | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> tuple[TwoTaskRecommender, Curves]:
    """Fits a new model.

    Args:
        recipe: What to train, and how.
        data: All of the split `train`; the recipe's validation slice is taken from it.
        transform_output: Output of Transform.
        bounds: The smallest and largest rating that the served model answers; validation clips to them.
        run_dir: Where TensorBoard's event files go; None for none.
        backup_dir: Where a killed training is continued from; only ever one for the same arguments. It stays there
            with the finished training in it, for the caller to remove. None for none.
        strategy: How the work is distributed; left out, by the devices there are.

    Returns:
        The model, in single precision and on one device whatever it was trained in and on, and its `curves`. Its
        weights are the averaged ones where the recipe asks for them, and those of the best epoch where it stops early.

    Raises:
        TrainingDiverged: The loss became infinite or not a number.
    """
    config = recipe.training
    fit, validation = data, None
    if config.validation is not None:
        kind = config.validation.kind or "random"
        fraction = min(config.validation.fraction, config.validation.max_rows / len(data.labels))
        fit, validation = data.hold_out(fraction, kind, config.validation.seed)
    strategy = strategy or device_strategy()
    done = _epochs_done(backup_dir) if backup_dir else 0
    if done:
        logging.info("Training goes on after epoch %d, from %s", done, backup_dir)
    # A run that goes on does not see the order and the dropout of its first epochs again.
    tf.keras.utils.set_random_seed(config.seed + done)

    def new_model() -> TwoTaskRecommender:
        return TwoTaskRecommender(
            recipe.model,
            recipe.features.query,
            recipe.features.candidate,
            fit,
            transform_output,
            static_shapes=config.xla,
        )

    plan = Plan.of(config, len(fit.labels), strategy.num_replicas_in_sync)
    with strategy.scope(), _precision(config.mixed_precision):
        model = new_model()
        fitting = Fitting(model, plan, keeps_best=config.early_stopping is not None)
        variables = model.trainable_variables
        rating_variables = model.rating_head.trainable_variables
        optimizer = build_optimizer(config.optimizer, plan.steps, variables, rating_variables)
        optimizer.build(variables)
        fitting.compile(optimizer=optimizer, jit_compile=config.xla)

    def input_fn(context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        return batches(
            fit,
            plan.batch_size,
            config.seed + done,
            recency_half_life_days=config.recency_half_life_days,
            rating_recency_half_life_days=config.rating_recency_half_life_days,
        ).repeat()

    # Every replica gets whole batches of its own: a history's items cannot be cut along the batch.
    distributed = strategy.num_replicas_in_sync > 1
    rows: Any = strategy.distribute_datasets_from_function(input_fn) if distributed else input_fn()
    epochs = Epochs(
        recipe,
        plan,
        optimizer,
        Validation(model, validation, bounds) if validation is not None else None,
        run_dir=run_dir,
        backup_dir=backup_dir,
        done=done,
    )
    callbacks: list[tf.keras.callbacks.Callback] = [epochs]
    if backup_dir:
        callbacks.append(Backup(backup_dir))
    # None is left where a training was killed between its end and its export.
    fitting.fit(rows, epochs=done if epochs.stopped else plan.epochs, steps_per_epoch=1, callbacks=callbacks, verbose=0)
    plain = model
    if distributed or config.mixed_precision:
        plain = new_model()
        for variable, trained in zip(plain.variables, model.variables, strict=True):
            variable.assign(tf.cast(trained.read_value(), variable.dtype))
    plain.average_unknown(fit)
    return plain, epochs.curves


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many batches of which size make an epoch and the whole training."""

    batch_size: int
    """Interactions of one replica's batch."""
    steps_an_epoch: int
    """Steps, of one batch a replica each, that go through all interactions."""
    steps: int
    """All steps of the training."""

    @classmethod
    def of(cls, config: Training, rows: int, replicas: int) -> Plan:
        """For `rows` interactions, shared by `replicas`."""
        batch_size = math.ceil(config.batch_size / replicas)
        an_epoch = math.ceil(math.ceil(rows / batch_size) / replicas)
        return cls(batch_size, an_epoch, config.steps or config.epochs * an_epoch)

    @property
    def epochs(self) -> int:
        """Epochs that are begun."""
        return math.ceil(self.steps / self.steps_an_epoch)

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch, counted from 0; the last one may be shorter."""
        return min(self.steps_an_epoch, self.steps - epoch * self.steps_an_epoch)


class Fitting(tf.keras.Model):
    """What Keras's `fit` drives: one of its batches is a whole epoch, which runs in one graph without coming back.

    Between two steps nothing of Python runs, and the next batches are made meanwhile, also across the end of an epoch.
    """

    def __init__(self, recommender: TwoTaskRecommender, plan: Plan, keeps_best: bool) -> None:
        super().__init__(name="fitting")
        self.train_function: Callable[[Iterator[Any]], dict[str, tf.Tensor]] | None = None
        self.recommender = recommender
        self.built = True
        self._loss = tf.keras.metrics.Mean(name="loss")
        self._regularization_loss = tf.keras.metrics.Mean(name="regularization_loss")
        # Of the best epoch, so that a backup has them with all else.
        self.best = [
            tf.Variable(variable, trainable=False, name=f"best_{index}")
            for index, variable in enumerate(recommender.trainable_variables if keeps_best else ())
        ]
        self._plan = plan
        self._steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps")

    def begin(self, epoch: int) -> None:
        """Sets how many steps the next epoch has."""
        self._steps.assign(self._plan.steps_in(epoch))

    def train_step(self, batch: Mapping[str, tf.Tensor]) -> None:
        """One replica's share of a step."""
        variables = self.recommender.trainable_variables
        scaling = isinstance(self.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
        with tf.GradientTape() as tape:
            loss = tf.cast(self.recommender.compute_loss(batch, training=True), tf.float32)
            regularization = tf.add_n([tf.zeros([]), *(tf.cast(part, tf.float32) for part in self.recommender.losses)])
            # Gradients are added up over the replicas; the loss is a mean over the rows of all of them.
            share = (loss + regularization) / self.distribute_strategy.num_replicas_in_sync
            target = self.optimizer.get_scaled_loss(share) if scaling else share
        gradients = tape.gradient(target, variables)
        if scaling:
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        # What a task with the weight 0 alone has gets no gradient, and Keras would warn of it in every replica.
        pairs = zip(gradients, variables, strict=True)
        self.optimizer.apply_gradients([pair for pair in pairs if pair[0] is not None])
        self._loss.update_state(loss + regularization)
        self._regularization_loss.update_state(regularization)

    def make_train_function(self, force: bool = False) -> Callable[[Iterator[Any]], dict[str, tf.Tensor]]:
        """What `fit` calls with its iterator, once an epoch."""
        if self.train_function is not None and not force:
            return self.train_function
        step = tf.function(self.train_step, jit_compile=True) if self.jit_compile else self.train_step

        @tf.function
        def epoch(iterator: Iterator[Any]) -> None:
            for _ in tf.range(self._steps):
                self.distribute_strategy.run(step, args=(next(iterator),))

        def train_function(iterator: Iterator[Any]) -> dict[str, tf.Tensor]:
            epoch(iterator)
            return {metric.name: metric.result() for metric in self.metrics}

        self.train_function = train_function
        return train_function


class Epochs(tf.keras.callbacks.Callback):
    """Around every epoch: its length, its validation, its line in log, curves and TensorBoard, and whether it is the
    last; at the end, the weights that count."""

    def __init__(
        self,
        recipe: TrainerRecipe,
        plan: Plan,
        optimizer: CompositeOptimizer,
        validation: Validation | None,
        *,
        run_dir: str | None,
        backup_dir: str | None,
        done: int,
    ) -> None:
        super().__init__()
        self.curves: Curves = {}
        self._recipe = recipe
        self._stopping = recipe.training.early_stopping
        self._plan = plan
        self._optimizer = optimizer
        self._validation = validation
        self._board = tf.summary.create_file_writer(run_dir) if run_dir else None
        self._backup_dir = backup_dir
        self._curves_file = os.path.join(backup_dir, CURVES_FILE) if backup_dir else None
        if self._curves_file and done:
            with tf.io.gfile.GFile(self._curves_file) as stream:
                kept = json.load(stream)
            # An epoch may be in the curves and not in the backup, which is written after them.
            self.curves = {name: values[:done] for name, values in kept.items()}
            for index in range(done):
                self._show({name: values[index] for name, values in self.curves.items()})

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()
        self.model.begin(epoch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        losses = {name: float(value) for name, value in (logs or {}).items()}
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            if self._backup_dir:
                # What leads here is not worth going on from.
                _remove(self._backup_dir)
            raise TrainingDiverged(self._divergence(epoch, wrong[0], losses[wrong[0]]))
        variables = self.model.recommender.trainable_variables
        measured = {}
        with self._optimizer.measured_weights(variables):
            if self._validation is not None:
                measured = {f"{VALIDATION}{name}": value for name, value in self._validation.measure().items()}
            if self._stopping is not None:
                values = [*self.curves.get(f"{VALIDATION}{self._stopping.metric}", [])]
                values.append(measured[f"{VALIDATION}{self._stopping.metric}"])
                if best_epoch(values, self._stopping) == epoch:
                    for best, variable in zip(self.model.best, variables, strict=True):
                        best.assign(variable)
        row = {
            "epoch": epoch + 1,
            "steps": epoch * self._plan.steps_an_epoch + self._plan.steps_in(epoch),
            "seconds": time.perf_counter() - self._start,
            "learning_rate": float(self._optimizer.learning_rate.read_value()),
            **losses,
            **measured,
            "kept": 0,
        }
        self.curves = with_epoch(self.curves, row)
        self._mark()
        logging.info(
            "Epoch %d of %d: %s",
            *(epoch + 1, self._plan.epochs),
            ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "steps", "kept")),
        )
        self._show(row)
        if self._curves_file:
            tf.io.gfile.makedirs(self._backup_dir)
            with tf.io.gfile.GFile(f"{self._curves_file}.new", "w") as stream:
                json.dump(self.curves, stream)
            tf.io.gfile.rename(f"{self._curves_file}.new", self._curves_file, overwrite=True)
        self.model.stop_training = self.stopped

    def on_train_end(self, logs: Any = None) -> None:
        variables = self.model.recommender.trainable_variables
        if self._stopping is not None:
            for variable, best in zip(variables, self.model.best, strict=True):
                variable.assign(best)
            logging.info("Kept the weights of epoch %d.", self.curves["kept"].index(1) + 1)
        if self._board is not None:
            self._board.close()

    def _best(self) -> int:
        """The index of the epoch whose weights count."""
        if self._stopping is None:
            return len(self.curves["epoch"]) - 1
        return best_epoch(self.curves[f"{VALIDATION}{self._stopping.metric}"], self._stopping)

    def _mark(self) -> None:
        best = self._best()
        self.curves["kept"] = [float(index == best) for index in range(len(self.curves["epoch"]))]

    @property
    def stopped(self) -> bool:
        """Whether early stopping ends the training after the epochs that there are."""
        if self._stopping is None or not self.curves:
            return False
        return len(self.curves["epoch"]) - 1 - self._best() >= self._stopping.patience

    def _show(self, row: Mapping[str, float]) -> None:
        """Writes an epoch for TensorBoard, with the epoch as the step."""
        if self._board is None:
            return
        with self._board.as_default(step=int(row["epoch"])):
            for name, value in row.items():
                if name not in ("epoch", "kept"):
                    tf.summary.scalar(name, value)
        self._board.flush()

    def _divergence(self, epoch: int, name: str, value: float) -> str:
        optimizer = self._recipe.training.optimizer
        remedies = [f"a smaller training.optimizer.learning_rate than {optimizer.learning_rate:g}"]
        if optimizer.clip_norm is None:
            remedies.append("training.optimizer.clip_norm: 1")
        if not optimizer.warm_up:
            remedies.append("training.optimizer.warm_up: 0.1")
        if self._recipe.training.mixed_precision:
            remedies.append("training.mixed_precision: false")
        return (
            f"training diverged in epoch {epoch + 1} of {self._plan.epochs}: {name} is {value}, a finite number was "
            f"wanted. Nothing was exported. Try {', or '.join(remedies)}"
        )


class Backup(tf.keras.callbacks.BackupAndRestore):
    """Keras's backup after an epoch, but not after every one where epochs are short, and kept at the end."""

    def __init__(self, backup_dir: str) -> None:
        super().__init__(backup_dir, delete_checkpoint=False)
        self._written = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if time.monotonic() - self._written >= BACKUP_SECONDS:
            super().on_epoch_end(epoch, logs)
            self._written = time.monotonic()


def device_strategy() -> tf.distribute.Strategy:
    """Several GPUs mirror the model and share each batch; one GPU or none needs nothing."""
    gpus = tf.config.list_logical_devices("GPU")
    return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus]) if len(gpus) > 1 else tf.distribute.get_strategy()


def fingerprint(recipe: TrainerRecipe, data: TrainingData, code: str) -> str:
    """A name for everything that decides how a training goes here: two with the same name may continue each other.

    Args:
        recipe: Of which what is only served does not count.
        data: The split `train` as it was read.
        code: What tells one version of the code from another.
    """
    digest = hashlib.sha256()
    # The number of devices decides how many steps an epoch has, and their kind what mixed precision is.
    devices = str(len(tf.config.list_logical_devices("GPU")))
    versions = (tf.__version__, version("tf-keras"))
    for part in (recipe.model_dump_json(exclude={"serving"}), code, *versions, devices):
        digest.update(part.encode() + b"\0")
    _digest(digest, data)
    return digest.hexdigest()[:32]


def _digest(digest: Any, value: Any) -> None:
    """Feeds arrays, and whatever holds them, with their names, types and shapes."""
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype.str} {value.shape}".encode())
        # Arrays of Python objects hold pointers, which differ from process to process.
        digest.update(repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value).data)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            digest.update(field.name.encode())
            _digest(digest, getattr(value, field.name))
    elif isinstance(value, Mapping):
        for name in sorted(value):
            digest.update(str(name).encode())
            _digest(digest, value[name])
    else:
        digest.update(repr(value).encode())


@contextlib.contextmanager
def _precision(mixed: bool) -> Iterator[None]:
    """Layers made within it compute in 16 bits where that is safe, if `mixed`."""
    policy = tf.keras.mixed_precision.global_policy()
    if mixed:
        kind = "float16" if tf.config.list_physical_devices("GPU") else "bfloat16"
        tf.keras.mixed_precision.set_global_policy(f"mixed_{kind}")
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)


def _epochs_done(backup_dir: str) -> int:
    """Epochs that are in a backup, which has the index of its last one."""
    path = tf.train.latest_checkpoint(os.path.join(backup_dir, "chief"))
    if path is None:
        return 0
    return int(tf.train.load_variable(path, "ckpt_saved_epoch/.ATTRIBUTES/VARIABLE_VALUE")) + 1


def _remove(folder: str) -> None:
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)


def _remove_forgotten(folder: str) -> None:
    """Removes what killed trainings left whose recipe or data have changed since: nothing else would ever do so."""
    for name in tf.io.gfile.listdir(folder) if tf.io.gfile.exists(folder) else ():
        backup = os.path.join(folder, name.rstrip("/"))
        # Another Trainer may be at work beside this one: what it just made is young, what it just removed is gone.
        with contextlib.suppress(tf.errors.NotFoundError):
            files = [os.path.join(path, file) for path, _, found in tf.io.gfile.walk(backup) for file in found]
            written = max((tf.io.gfile.stat(file).mtime_nsec / 1e9 for file in files), default=time.time())
            if time.time() - written > BACKUP_DAYS * 24 * 3600:
                logging.info("Removing %s, which no training has gone on from for %d days.", backup, BACKUP_DAYS)
                tf.io.gfile.rmtree(backup)
