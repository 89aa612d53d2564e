"""Trains a recipe with one device and with several virtual ones; test_devices.py runs it in a process of its own.

`python several_devices.py RECIPE_JSON ARTIFACTS DEVICES` prints the curves of both, as one line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split

import tensorflow as tf
import tensorflow_transform as tft

from components.trainer.data.training_data import read_training_data
from components.trainer.fitting.training_loop import train
from recipe.trainer import TrainerRecipe

several = int(sys.argv[3])
# Devices can only be made before TensorFlow uses the first one.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * several
)

recipe = TrainerRecipe.model_validate_json(sys.argv[1])
# Later runs in the same folder may have transformed other data.
transform = min(Path(sys.argv[2]).glob("Transform/transform_graph/*"), key=lambda folder: int(folder.name))
examples = Path(sys.argv[2], "Transform", "transformed_examples", transform.name)
transform_output = tft.TFTransformOutput(str(transform))
data = read_training_data(
    [str(examples / "Split-train" / "*")],
    [str(examples / "Split-catalogue" / "*")],
    transform_output,
    recipe.features,
    recipe.columns,
)
# Collective operations keep the number of devices for as long as the process lives: one strategy is all it can have.
mirrored = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(several)])
strategies = (tf.distribute.get_strategy(), mirrored)
print(json.dumps([train(recipe, data, transform_output, strategy=strategy)[1] for strategy in strategies]))
