"""The examples in docstrings run, and every public layer, module and function of the Trainer has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import io
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import components

# isort: split

import numpy as np
import pytest
import tensorflow as tf

import components.trainer
import components.transform
import components.tuner
from components.trainer.data.batches import batches
from components.trainer.data.histories import whole_histories
from components.trainer.export import ServedRecommender
from components.trainer.model.recommender import TwoTaskRecommender
from recipe.features import History, Identifier
from recipe.model import Layers

World = Any

# TFX calls them with arguments that only a pipeline has.
ENTRY_POINTS = {"run_fn", "preprocessing_fn", "tuner_fn"}

# They train and save a model.
SLOW = {"components.trainer.export.served_recommender", "components.trainer.fitting.training_loop"}


def modules() -> Iterator[str]:
    for package in (components.trainer, components.transform, components.tuner):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield module.name


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [found for found in doctest.DocTestFinder().find(module) if found.examples]


@pytest.fixture(scope="module")
def names(world: World) -> Mapping[str, Any]:
    """The names that examples use besides those of their module."""
    recipe = world.recipe(training={"epochs": 1})
    data = world.data(recipe)
    model = TwoTaskRecommender(
        recipe.model, recipe.features.query, recipe.features.candidate, data, world.transform_output
    )
    return {
        "recipe": recipe,
        "schema": world.schema,
        "transform_output": world.transform_output,
        "data": data,
        "model": model,
        "served": ServedRecommender(model, data, world.transform_output, recipe, world.schema),
        "train_files": world.files["train"],
        "catalogue_files": world.files["catalogue"],
        **{found.__name__: found for found in (History, Identifier, Layers, batches, whole_histories)},
        "np": np,
        "tf": tf,
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in modules()]
)
def test_examples_give_their_output(
    name: str, names: Mapping[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = io.StringIO()
    module = importlib.import_module(name)
    for example in examples(module):
        example.globs = {**vars(module), **names}
        tf.keras.utils.set_random_seed(1)
        doctest.DocTestRunner(verbose=False).run(example, out=report.write)
    assert not report.getvalue(), report.getvalue()


@pytest.mark.parametrize("name", modules())
def test_public_layers_and_functions_have_an_example(name: str) -> None:
    module = importlib.import_module(name)
    layers = (tf.keras.layers.Layer, tf.Module, tf.keras.optimizers.schedules.LearningRateSchedule)
    public = {
        found.__name__
        for key, found in vars(module).items()
        if not key.startswith("_") and getattr(found, "__module__", None) == name
        if (inspect.isfunction(found) and key not in ENTRY_POINTS)
        or (inspect.isclass(found) and issubclass(found, layers) and not inspect.isabstract(found))
    }
    shown = {found.name.removeprefix(f"{name}.").split(".")[0] for found in examples(module)}
    assert public <= shown, f"expected an Example in the docstrings of {sorted(public - shown)}"
