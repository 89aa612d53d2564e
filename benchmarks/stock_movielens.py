"""`preprocessing_fn` and `run_fn` of the MovieLens run with stock components, as a TFX user writes them.

The components of `stock_dag.py` import them by name. The features are those of `schemas/movielens/recipe.yaml`, and the
model is the joint one of TensorFlow Recommenders' multi-task tutorial, on Transform's indices instead of strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tensorflow_transform as tft
from tfx import v1 as tfx
from tfx_bsl.public import tfxio

USER, ITEM, LABEL = "user_id", "item_id", "rating"
TOP = 100


def preprocessing_fn(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Ids and categories to indices, words and genres to multi-hot lists, times and ages to buckets."""
    outputs = {
        name: tft.compute_and_apply_vocabulary(inputs[name], vocab_filename=name)
        for name in (USER, ITEM, "gender", "occupation")
    }
    words = tf.strings.split(tf.strings.lower(tf.squeeze(inputs["title"], axis=1))).to_sparse()
    outputs["title_words"] = tft.compute_and_apply_vocabulary(words, vocab_filename="title_words")
    genres = tf.strings.split(tf.squeeze(inputs["genres"], axis=1), "|").to_sparse()
    outputs["genres"] = tft.compute_and_apply_vocabulary(genres, vocab_filename="genres")
    outputs["timestamp_buckets"] = tf.cast(tft.scale_to_0_1(inputs["timestamp"]) * 999, tf.int64)
    outputs["timestamp_normalized"] = tft.scale_to_z_score(inputs["timestamp"])
    outputs["age_buckets"] = tft.bucketize(inputs["age"], 8)
    outputs[LABEL] = tf.cast(inputs[LABEL], tf.float32)
    return outputs


class MultiTaskModel(tfrs.models.Model):
    """The tutorial's joint model: two embeddings, their product for retrieval, dense layers for the rating."""

    def __init__(self, settings: Mapping[str, Any], user_count: int, item_count: int) -> None:
        super().__init__()
        width = settings["embedding_dim"]
        # The last row is for OOV ids.
        self.user_model = tf.keras.layers.Embedding(user_count + 1, width)
        self.item_model = tf.keras.layers.Embedding(item_count + 1, width)
        self.rating_model = tf.keras.Sequential(
            [*(tf.keras.layers.Dense(units, activation="relu") for units in settings["layers"]),
             tf.keras.layers.Dense(1)]
        )  # fmt: skip
        self.user_count, self.item_count = user_count, item_count
        self.rating_task = tfrs.tasks.Ranking(
            loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError()]
        )
        # Without FactorizedTopK, which takes longer than training; the Evaluator measures.
        self.retrieval_task = tfrs.tasks.Retrieval()
        self.rating_weight, self.retrieval_weight = settings["rating_weight"], settings["retrieval_weight"]

    def embed(self, features: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Vectors of the users and of the items, both [B, width]."""
        users = tf.where(features[USER] < 0, tf.cast(self.user_count, tf.int64), features[USER])
        items = tf.where(features[ITEM] < 0, tf.cast(self.item_count, tf.int64), features[ITEM])
        return self.user_model(tf.reshape(users, [-1])), self.item_model(tf.reshape(items, [-1]))

    def call(self, features: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        users, items = self.embed(features)
        return users, items, self.rating_model(tf.concat([users, items], axis=1))

    def compute_loss(self, inputs: tuple[Mapping[str, tf.Tensor], tf.Tensor], training: bool = False) -> tf.Tensor:
        features, labels = inputs
        users, items, ratings = self(features)
        return self.rating_weight * self.rating_task(
            labels=labels, predictions=ratings
        ) + self.retrieval_weight * self.retrieval_task(users, items)


def run_fn(fn_args: tfx.components.FnArgs) -> None:
    """Train the model and export the signatures `serving_default`, `evaluate` and `recommend`."""
    settings = fn_args.custom_config
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    rows = fn_args.data_accessor.tf_dataset_factory(
        fn_args.train_files,
        tfxio.TensorFlowDatasetOptions(
            batch_size=settings["batch_size"], label_key=LABEL, num_epochs=1, shuffle_buffer_size=100_000
        ),
        transform_output.transformed_metadata.schema,
    )
    rows = rows.map(lambda features, label: ({name: features[name] for name in (USER, ITEM)}, label))
    model = MultiTaskModel(settings, *(transform_output.vocabulary_size_by_name(name) for name in (USER, ITEM)))
    model.compile(optimizer=tf.keras.optimizers.Adagrad(settings["learning_rate"]))
    model.fit(rows.cache(), epochs=settings["epochs"], verbose=0)
    export(model, transform_output, fn_args.serving_model_dir)


def export(model: MultiTaskModel, transform_output: tft.TFTransformOutput, folder: str) -> None:
    """Write the SavedModel, with the transform graph in its signatures."""
    model.transform_layer = transform_output.transform_features_layer()
    raw = {name: spec for name, spec in transform_output.raw_feature_spec().items() if name in (USER, ITEM)}
    index = tfrs.layers.factorized_top_k.BruteForce(k=TOP)
    index.index(model.item_model.embeddings[: model.item_count])
    model.index = index

    def transformed(examples: tf.Tensor) -> Any:
        return model.transform_layer(tf.io.parse_example(examples, raw))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def rate(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        _, _, ratings = model(transformed(examples))
        return {LABEL: ratings}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def evaluate(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        users, items, ratings = model(transformed(examples))
        scores = tf.matmul(users, model.item_model.embeddings[: model.item_count], transpose_b=True)
        better = tf.reduce_sum(tf.cast(scores > tf.reduce_sum(users * items, axis=1, keepdims=True), tf.int32), axis=1)
        return {LABEL: ratings, "top_100_hit": tf.cast(better < TOP, tf.float32)[:, tf.newaxis]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name=USER)])
    def recommend(users: tf.Tensor) -> dict[str, tf.Tensor]:
        index = model.transform_layer({USER: users[:, tf.newaxis]})[USER]
        known = tf.where(index < 0, tf.cast(model.user_count, tf.int64), index)
        scores, items = model.index(model.user_model(tf.reshape(known, [-1])))
        return {"scores": scores, "items": items}

    model.save(folder, save_format="tf",
               signatures={"serving_default": rate, "evaluate": evaluate, "recommend": recommend})  # fmt: skip
