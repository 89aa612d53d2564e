"""The items of the exported model: their ids, the columns shown with them, and their features."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2

from components.trainer.data.training_data import TrainingData, id_feature
from components.trainer.export.signature_inputs import (
    NOT_GIVEN,
    Input,
    Outputs,
    column,
    given_or,
    sparse,
)
from components.trainer.model.recommender import Encoded, TwoTaskRecommender
from components.trainer.model.towers import scope_name
from recipe.columns import column_types
from recipe.trainer import TrainerRecipe

ITEM_ID = "item_id"


class Catalogue(tf.Module):
    """N items by vocabulary index, 1 to N; 0 is the unknown item."""

    def __init__(
        self,
        model: TwoTaskRecommender,
        data: TrainingData,
        transform_output: tft.TFTransformOutput,
        transform: tft.TransformFeaturesLayer,
        recipe: TrainerRecipe,
        schema: schema_pb2.Schema,
    ) -> None:
        """See `ServedRecommender`; `transform` is the layer of `transform_output`, of which one is enough."""
        super().__init__(name="catalogue")
        self.item_count = data.item_count
        self._id_column = recipe.columns.item_id
        self._features = recipe.features.candidate
        self._id_feature = id_feature(self._features, self._id_column).name
        types = column_types(schema)
        names = sorted({feature.column for feature in self._features} - {self._id_column})
        self._types = {name: types[name] for name in names}
        self._transform = transform
        self._encode = model.encode_item_features
        # A SavedModel holds the variables of what it tracks; bound methods are not tracked.
        layers = (model.candidate_tower, model.rating_head, model.retrieval_factors)
        self._weights = [variable for layer in layers for variable in layer.variables]
        self.ids = tf.constant([b"", *transform_output.vocabulary_by_name(self._id_feature)])
        """string [N + 1]"""
        self.display = {name: tf.constant(values) for name, values in data.display.items()}
        """string [N + 1] each"""
        self._remembered = {
            name: tf.Variable(values, trainable=False, name=f"item_{scope_name(name)}")
            for name, values in data.catalogue.items()
        }

    @property
    def inputs(self) -> list[Input]:
        """The columns of an item other than its id."""
        return [column(name, kind) for name, kind in self._types.items()]

    def indices(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids string [...] to vocabulary indices int64 [...]; 0 for unknown ones and ''."""
        flat = self.indices_of_column(sparse(tf.reshape(ids, [-1]), NOT_GIVEN["BYTES"]))
        return tf.reshape(flat, tf.shape(ids))

    def indices_of_column(self, ids: tf.SparseTensor) -> tf.Tensor:
        """The raw id column [B, 1] to vocabulary indices int64 [B]."""
        return self._transform({self._id_column: ids})[self._id_feature]

    def shown(self, items: tf.Tensor) -> Outputs:
        """What a client is told of the items int64 [B, K]: `item_ids` and the display columns, string [B, K] each."""
        chosen = {"item_ids": self.ids, **self.display}
        return {name: tf.gather(values, items) for name, values in chosen.items()}

    def encode(self, item_id: tf.Tensor, columns: Mapping[str, tf.Tensor]) -> Encoded:
        """Items as both tasks take them, from ids and columns; what is not given is as in the catalogue.

        An unknown item is its columns alone, with the id that stands for every unknown one; columns that are not given
        are missing then.

        Args:
            item_id: string [B], or [1] for all rows; '' for an item without one.
            columns: By name, [B] or [1]; see `inputs`.
        """
        shape = tf.shape(item_id)
        for values in columns.values():
            shape = tf.broadcast_dynamic_shape(shape, tf.shape(values))
        raw = {
            name: sparse(tf.broadcast_to(columns[name], shape), NOT_GIVEN[kind]) for name, kind in self._types.items()
        }
        raw[self._id_column] = sparse(tf.broadcast_to(item_id, shape), NOT_GIVEN["BYTES"])
        transformed = self._transform(raw)
        items = transformed[self._id_feature]
        features = {
            feature.name: given_or(
                raw[feature.column],
                transformed[feature.name],
                tf.gather(self._remembered[feature.name].read_value(), items),
            )
            for feature in self._features
        }
        return self._encode(items, features)
