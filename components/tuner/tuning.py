"""`tuner_fn`, the entry point of the Tuner: transformed examples to a KerasTuner search over the recipe's keys."""

from __future__ import annotations

import gc
import math
from typing import Any

import keras_tuner
import tensorflow as tf
import tensorflow_transform as tft
from absl import logging
from keras_tuner.engine import base_tuner, trial
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.components.tuner.component import TunerFnResult
from tfx.utils import io_utils

from components.trainer.data.training_data import TrainingData, read_training_data
from components.trainer.export import label_bounds
from components.trainer.fitting.callbacks import TrainingDiverged
from components.trainer.fitting.curves import VALIDATION, Curves
from components.trainer.fitting.hyperparameters import recipe_values
from components.trainer.fitting.training_loop import train
from components.tuner.search_space import EPOCHS, search_space
from recipe.errors import RecipeError
from recipe.trainer import TrainerRecipe
from recipe.tuner import Objective, Tuner, TunerRecipe

SCORE = "score"
"""Name of KerasTuner's objective."""
DEFAULT_TRIALS = 10
"""Number of trials if the recipe does not set it."""
# The search ends after this number of consecutive failed trials.
MAX_CONSECUTIVE_FAILURES = 10


def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """Create the search; TFX's executor runs it and writes the best hyperparameters.

    A trial trains on the train split without the validation split, and is scored on the validation split. The Tuner
    does not read the eval split; TFX's argument `eval_files` has the catalogue.

    Args:
        fn_args: From TFX; `custom_config["recipe"]` is a `TunerRecipe` as JSON.
    """
    recipe = TunerRecipe.model_validate_json(fn_args.custom_config["recipe"])
    schema = io_utils.parse_pbtxt_file(fn_args.schema_path, schema_pb2.Schema())
    transform_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    data = read_training_data(
        fn_args.train_files,
        fn_args.eval_files,
        transform_output,
        recipe.features,
        recipe.columns,
        negatives=recipe.negatives is not None,
    )
    return TunerFnResult(
        tuner=RecipeTuner(recipe, fn_args.working_dir),
        fit_kwargs={
            "data": data,
            "transform_output": transform_output,
            "bounds": label_bounds(schema, recipe.columns.label),
        },
    )


class RecipeTuner(base_tuner.BaseTuner):
    """A KerasTuner tuner: trains the recipe's model with a trial's values and scores it by the recipe's objective."""

    def __init__(self, recipe: TunerRecipe, directory: str) -> None:
        """
        Args:
            recipe: The recipe, with a section `tuner`.
            directory: Folder in which KerasTuner stores the state of each trial.
        """
        self._recipe = TrainerRecipe(**{name: getattr(recipe, name) for name in TrainerRecipe.model_fields})
        self._objective = recipe.tuner.objective
        self._epochs = recipe.tuner.epochs or recipe.training.epochs
        super().__init__(_oracle(recipe.tuner, self._epochs), directory=directory, project_name="tuner", overwrite=True)

    def run_trial(
        self,
        trial: trial.Trial,
        data: TrainingData,
        transform_output: tft.TFTransformOutput,
        bounds: tuple[float, float] | None,
    ) -> dict[str, float]:
        """Train and score one trial.

        Args:
            trial: From KerasTuner.
            data: The train split; the validation split is held out of it.
            transform_output: Output of Transform.
            bounds: Smallest and largest rating of the served model.

        Returns:
            The score of the trained weights by name; higher is better.

        Raises:
            FailedTrialError: The values do not form a valid recipe, the training diverged, or the score is not finite.
            FatalRuntimeError: Any other error, which ends the search.
        """
        values = recipe_values(trial.hyperparameters.get_config())
        epochs = int(trial.hyperparameters.values.get(EPOCHS, self._epochs))
        try:
            recipe = self._recipe.with_values(values)
        except RecipeError as error:
            # Loading the recipe has checked each value, but not their combinations.
            raise keras_tuner.errors.FailedTrialError(str(error)) from error
        training = recipe.training.model_copy(update={"epochs": epochs, "steps": None})
        try:
            _, curves = train(recipe.model_copy(update={"training": training}), data, transform_output, bounds=bounds)
        except TrainingDiverged as error:
            raise keras_tuner.errors.FailedTrialError(str(error)) from error
        except Exception as error:
            # KerasTuner would count any other error as a failed trial and continue.
            raise keras_tuner.errors.FatalRuntimeError(f"trial {trial.trial_id} with {values}: {error}") from error
        finally:
            tf.keras.backend.clear_session()
            gc.collect()
        measured = measured_metrics(curves)
        score = _score(measured, self._objective)
        logging.info("Trial %s: score %.6g, metrics %s, values %s", trial.trial_id, score, measured, values)
        if not math.isfinite(score):
            raise keras_tuner.errors.FailedTrialError(f"expected a finite score, got {score}")
        return {SCORE: score}

    def on_search_end(self) -> None:
        """Check that a trial has completed; otherwise TFX would use the values of a failed one.

        Raises:
            RecipeError: All trials failed.
        """
        trials = list(self.oracle.trials.values())
        if not any(each.status == trial.TrialStatus.COMPLETED for each in trials):
            last = (trials[-1].message or "").strip().splitlines()[-1:] if trials else []
            raise RecipeError(f"tuner: all {len(trials)} trials failed. Error of the last one: {''.join(last)}")


def measured_metrics(curves: Curves) -> dict[str, float]:
    """Return the validation metrics of the epoch whose weights the model has, by name.

    Example:
        >>> measured_metrics({"kept": [0, 1], "validation_rmse": [0.9, 0.8], "validation_top_100_accuracy": [0.3, 0.4]})
        {'top_100_accuracy': 0.4, 'rmse': 0.8}
    """
    kept = curves["kept"].index(1)
    return {metric: curves[f"{VALIDATION}{metric}"][kept] for metric in Objective.model_fields}


def _score(measured: dict[str, float], objective: Objective) -> float:
    return objective.top_100_accuracy * measured["top_100_accuracy"] - objective.rmse * measured["rmse"]


def _oracle(tuner: Tuner, epochs: int) -> keras_tuner.Oracle:
    shared: dict[str, Any] = {
        "objective": keras_tuner.Objective(SCORE, "max"),
        "hyperparameters": search_space(tuner),
        "seed": tuner.seed,
        "max_consecutive_failed_trials": MAX_CONSECUTIVE_FAILURES,
    }
    if tuner.algorithm == "hyperband":
        return keras_tuner.oracles.HyperbandOracle(max_epochs=epochs, **shared)
    kinds = {
        "random": keras_tuner.oracles.RandomSearchOracle,
        "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
    }
    return kinds[tuner.algorithm](max_trials=tuner.trials or DEFAULT_TRIALS, **shared)
