"""The module that is saved as a SavedModel, and its signatures; docs/serving.md is their reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2

from components.trainer.data.ragged_ops import boolean_mask, dense_boolean_mask
from components.trainer.data.training_data import TrainingData
from components.trainer.export.catalogue import Catalogue
from components.trainer.export.evaluate_signature import EvaluateSignature
from components.trainer.export.query_encoder import QueryEncoder
from components.trainer.export.ranking import Ranked, Ranker
from components.trainer.export.signature_inputs import (
    Outputs,
    id_list,
    optional_id,
    required,
    scalar,
    signature,
)
from components.trainer.export.similar_items import SimilarItems
from components.trainer.export.text_search import TextSearch
from components.trainer.export.warm_up_requests import Request, write_warm_up
from components.trainer.model.recommender import TwoTaskRecommender
from recipe.serving import HISTORY_INPUT
from recipe.trainer import TrainerRecipe

SERVING_DEFAULT = "serving_default"
EVALUATE = "evaluate"
RECOMMEND = "recommend"
RECOMMEND_FILTERED = "recommend_filtered"
SIMILAR_ITEMS = "similar_items"
FIND_ITEMS = "find_items"
RATE = "rate"
EMBED_QUERY = "embed_query"
EMBED_ITEM = "embed_item"

USER_ID = "user_id"
ITEM_ID = "item_id"
EXCLUDE = "exclude"
ONLY = "only"
K = "k"
TEXT = "text"

DEFAULT_K = 10
WARM_UP_BATCHES = (1, 8)

Inputs = Mapping[str, tf.Tensor]


class ServedRecommender(tf.Module):
    """A trained `TwoTaskRecommender` with the transform graph, the catalogue and the stored user histories.

    Its parts are public for other ways to serve the model: `query_encoder`, `catalogue` and `ranker`.

    Example:
        >>> served = ServedRecommender(model, data, transform_output, recipe, schema)
        >>> recommended = served.signatures()["recommend"](tf.constant(["g0u00"]))
        >>> sorted(recommended)
        ['item_ids', 'name', 'ratings', 'scores']
    """

    def __init__(
        self,
        model: TwoTaskRecommender,
        data: TrainingData,
        transform_output: tft.TFTransformOutput,
        recipe: TrainerRecipe,
        schema: schema_pb2.Schema,
    ) -> None:
        """Encode the catalogue and build the indexes.

        Args:
            model: The trained model.
            data: The train split, the validation split included.
            transform_output: Output of Transform.
            recipe: The recipe.
            schema: Types and domains of the raw columns.
        """
        super().__init__(name="tandem")
        self._columns = recipe.columns
        self._has_history = recipe.features.history is not None
        # One layer for all parts, because each layer has its own copy of the vocabularies.
        transform = transform_output.transform_features_layer()
        self.catalogue = Catalogue(model, data, transform_output, transform, recipe, schema)
        self.query_encoder = QueryEncoder(model, data, transform, recipe, schema, self.catalogue)
        self.ranker = Ranker(model, data, recipe, schema, self.query_encoder)
        every = tf.range(1, data.item_count + 1, dtype=tf.int64)
        self._similar_item_index = SimilarItems(self.ranker.index.vectors(every), recipe, self.ranker.k)
        self._text_search = TextSearch(data) if data.display else None
        self._evaluation = EvaluateSignature(data, recipe.columns, self.catalogue, self.query_encoder, self.ranker)

    def signatures(self) -> dict[str, Any]:
        """Return the functions to save, by signature name."""
        user, item = required(USER_ID), required(ITEM_ID)
        filters = [id_list(EXCLUDE), id_list(ONLY), scalar(K, DEFAULT_K)]
        evaluate = signature(lambda inputs: self._evaluation.evaluate(inputs["examples"]), [required("examples")])
        found = {
            SERVING_DEFAULT: evaluate,
            EVALUATE: evaluate,
            RECOMMEND: signature(self._recommend, [user, *self.query_encoder.inputs]),
            RECOMMEND_FILTERED: signature(self._recommend_filtered, [user, *self.query_encoder.inputs, *filters]),
            SIMILAR_ITEMS: signature(self._similar_items, [item]),
            RATE: signature(self._rate, [user, item, *self.query_encoder.inputs]),
            EMBED_QUERY: signature(self._embed_query, [user, *self.query_encoder.inputs]),
            EMBED_ITEM: signature(self._embed_item, [optional_id(ITEM_ID), *self.catalogue.inputs]),
        }
        if self._text_search is not None:
            found[FIND_ITEMS] = signature(self._find_items, [required(TEXT)])
        return found

    def warm_up_requests(self, user_ids: Sequence[str | bytes], item_ids: Sequence[str | bytes]) -> Iterator[Request]:
        """Yield requests of every signature, with one row and with a small batch.

        Args:
            user_ids: User ids of the requests; at least one.
            item_ids: Item ids of the requests; at least one.
        """
        for size in WARM_UP_BATCHES:
            users = list(itertools.islice(itertools.cycle(user_ids), size))
            items = list(itertools.islice(itertools.cycle(item_ids), size))
            some = {EXCLUDE: [items[:1]], ONLY: [items]}
            examples = [
                _example({self._columns.user_id: user, self._columns.item_id: item})
                for user, item in zip(users, items, strict=True)
            ]
            yield RECOMMEND, {USER_ID: users}
            if self._has_history:
                yield RECOMMEND, {USER_ID: users, HISTORY_INPUT: [items]}
            yield RECOMMEND_FILTERED, {USER_ID: users}
            yield RECOMMEND_FILTERED, {USER_ID: users, **some, K: size}
            yield SIMILAR_ITEMS, {ITEM_ID: items}
            if self._text_search is not None:
                yield FIND_ITEMS, {TEXT: self._first_words(items)}
            yield RATE, {USER_ID: users, ITEM_ID: items}
            yield EMBED_QUERY, {USER_ID: users}
            yield EMBED_ITEM, {ITEM_ID: items}
            yield EVALUATE, {"examples": examples}
            yield SERVING_DEFAULT, {"examples": examples}

    def _first_words(self, item_ids: Sequence[str | bytes]) -> list[bytes]:
        column = next(iter(self.catalogue.display.values()))
        shown = tf.gather(column, self.catalogue.indices(tf.constant(item_ids)))
        return [b"".join(value.split()[:1]) for value in shown.numpy()]

    def _recommend(self, inputs: Inputs) -> Outputs:
        queries = self.query_encoder.encode(inputs[USER_ID], inputs)
        return self._outputs(self.ranker.top_k(queries.query, self.ranker.k, self.ranker.exclusions(queries.seen)))

    def _recommend_filtered(self, inputs: Inputs) -> Outputs:
        k = inputs[K]
        above = tf.debugging.assert_positive(k, message="k must be at least 1, the number of items to return")
        with tf.control_dependencies([above]):
            k = tf.minimum(k, self.catalogue.item_count)
        queries = self.query_encoder.encode(inputs[USER_ID], inputs)
        rows = tf.size(inputs[USER_ID])
        exclude = self._item_lists(inputs[EXCLUDE], rows)
        # A new item cannot be excluded. In `only` it stays, because a row with new items only has no candidates.
        excluded = boolean_mask(exclude, exclude.flat_values > 0)
        seen = self.ranker.exclusions(queries.seen)
        excluded = excluded if seen is None else tf.concat([seen, excluded], axis=1)
        only = self._item_lists(inputs[ONLY], rows)
        return self._outputs(self.ranker.top_k(queries.query, k, excluded, only))

    def _item_lists(self, ids: tf.Tensor, rows: tf.Tensor) -> tf.RaggedTensor:
        """Look up items, int64 [B, None], of ids, string [B, n] or [1, n] for all rows, without ''; 0 for new items."""
        shape = tf.stack([rows, tf.shape(ids)[1]])
        given = tf.broadcast_to(tf.not_equal(ids, ""), shape)
        return dense_boolean_mask(tf.broadcast_to(self.catalogue.indices(ids), shape), given)

    def _similar_items(self, inputs: Inputs) -> Outputs:
        found = self._similar_item_index.search(self.catalogue.indices(inputs[ITEM_ID]), self.ranker.k)
        return {**self.catalogue.describe(found.items), "scores": found.scores}

    def _find_items(self, inputs: Inputs) -> Outputs:
        assert self._text_search is not None
        return self.catalogue.describe(self._text_search.search(inputs[TEXT], self.ranker.k))

    def _rate(self, inputs: Inputs) -> Outputs:
        queries = self.query_encoder.encode(inputs[USER_ID], inputs)
        return {"rating": self.ranker.predict_ratings(queries.query, self.catalogue.indices(inputs[ITEM_ID]))}

    def _embed_query(self, inputs: Inputs) -> Outputs:
        return {"embedding": self.query_encoder.encode(inputs[USER_ID], inputs).query.retrieval}

    def _embed_item(self, inputs: Inputs) -> Outputs:
        return {"embedding": self.catalogue.encode(inputs[ITEM_ID], inputs).retrieval}

    def _outputs(self, found: Ranked) -> Outputs:
        return {**self.catalogue.describe(found.items), "scores": found.scores, "ratings": found.ratings}


def save(
    served: ServedRecommender, path: str, user_ids: Sequence[str | bytes], item_ids: Sequence[str | bytes]
) -> None:
    """Save the SavedModel and its warm-up requests.

    Args:
        served: The module to export.
        path: Folder to write.
        user_ids: User ids of the warm-up requests; at least one.
        item_ids: Item ids of the warm-up requests; at least one.

    Example:
        >>> save(served, "exported", user_ids=["g0u00"], item_ids=["g0i00"])
        >>> "recommend" in tf.saved_model.load("exported").signatures
        True
    """
    tf.saved_model.save(served, path, signatures=served.signatures())
    write_warm_up(path, served.warm_up_requests(user_ids, item_ids))


def _example(columns: Mapping[str, str | bytes]) -> bytes:
    message = tf.train.Example()
    for name, value in columns.items():
        message.features.feature[name].bytes_list.value.append(tf.compat.as_bytes(value))
    return bytes(message.SerializeToString())
