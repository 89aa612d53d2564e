"""The items of the exported model: ids, display columns and features."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2

from components.trainer.data.training_data import TrainingData, id_feature
from components.trainer.export.signature_inputs import (
    UNSET,
    Input,
    Outputs,
    column,
    sparse,
    value_or_default,
)
from components.trainer.model.recommender import Encoded, TwoTaskRecommender
from components.trainer.model.towers import scope_name
from recipe.columns import column_types
from recipe.trainer import TrainerRecipe

ITEM_ID = "item_id"


class Catalogue(tf.Module):
    """N items by vocabulary index, 1 to N; 0 is the OOV index.

    Example:
        >>> served.catalogue.indices(tf.constant(["g0i00", "new item"])).numpy() > 0
        array([ True, False])
    """

    def __init__(
        self,
        model: TwoTaskRecommender,
        data: TrainingData,
        transform_output: tft.TFTransformOutput,
        transform: tft.TransformFeaturesLayer,
        recipe: TrainerRecipe,
        schema: schema_pb2.Schema,
    ) -> None:
        """See `ServedRecommender` for the arguments; `transform` is the shared layer of `transform_output`."""
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
        # A SavedModel saves the variables of tracked attributes; the layers of a bound method are not tracked.
        layers = (model.candidate_tower, model.rating_head, model.retrieval_factors)
        self._weights = [variable for layer in layers for variable in layer.variables]
        self.ids = tf.constant([b"", *transform_output.vocabulary_by_name(self._id_feature)])
        """Item ids by index, string [N + 1]; '' for index 0."""
        self.display = {name: tf.constant(values) for name, values in data.display.items()}
        """Display columns by name, string [N + 1] each."""
        self._stored_features = {
            name: tf.Variable(values, trainable=False, name=f"item_{scope_name(name)}")
            for name, values in data.catalogue.items()
        }

    @property
    def inputs(self) -> list[Input]:
        """Signature inputs for the item columns other than the id."""
        return [column(name, kind) for name, kind in self._types.items()]

    def indices(self, ids: tf.Tensor) -> tf.Tensor:
        """Look up vocabulary indices, int64 [...], of ids, string [...]; 0 for new items and ''."""
        flat = self.indices_of_column(sparse(tf.reshape(ids, [-1]), UNSET["BYTES"]))
        return tf.reshape(flat, tf.shape(ids))

    def indices_of_column(self, ids: tf.SparseTensor) -> tf.Tensor:
        """Look up vocabulary indices, int64 [B], of the raw id column, string [B, 1]."""
        return self._transform({self._id_column: ids})[self._id_feature]

    def describe(self, items: tf.Tensor) -> Outputs:
        """Return the outputs that describe items, int64 [B, K]: `item_ids` and display columns, string [B, K] each."""
        columns = {"item_ids": self.ids, **self.display}
        return {name: tf.gather(values, items) for name, values in columns.items()}

    def encode(self, item_id: tf.Tensor, columns: Mapping[str, tf.Tensor]) -> Encoded:
        """Encode items from ids and columns; a column that is not set has the catalogue's value.

        A new item is encoded from its columns and the OOV embedding; its columns that are not set are missing values.

        Args:
            item_id: string [B], or [1] for all rows; '' for an item without an id.
            columns: Columns by name, [B] or [1]; see `inputs`.
        """
        shape = tf.shape(item_id)
        for values in columns.values():
            shape = tf.broadcast_dynamic_shape(shape, tf.shape(values))
        raw = {name: sparse(tf.broadcast_to(columns[name], shape), UNSET[kind]) for name, kind in self._types.items()}
        raw[self._id_column] = sparse(tf.broadcast_to(item_id, shape), UNSET["BYTES"])
        transformed = self._transform(raw)
        items = transformed[self._id_feature]
        features = {
            feature.name: value_or_default(
                raw[feature.column],
                transformed[feature.name],
                tf.gather(self._stored_features[feature.name].read_value(), items),
            )
            for feature in self._features
        }
        return self._encode(items, features)
