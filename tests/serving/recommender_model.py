"""A small SavedModel with every signature of a Tandem model, for the tests of the client.

A test can compute its outputs; names, dtypes, defaults and padding are those of docs/serving.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from contract_model import with_optional

USERS = ("1", "2", "3")
K = 10
SIGNATURES = (
    *("serving_default", "evaluate", "recommend", "recommend_filtered"),
    *("rate", "similar_items", "find_items", "embed_query", "embed_item"),
)
TITLES = (
    *(
        "Batman (1989)",
        "Batman & Robin (1997)",
        "The Lego Batman Movie",
        "Batwoman",
        "Acrobat, The",
        "C++ (a love story)",
    ),
    *("Amélie", "What? (1972)", "8½", "[REC]"),
)
ITEMS = tuple(f"i{number}" for number in range(40))
NAN = float("nan")


class RecommenderModel(tf.Module):
    """Scores are inner products of vectors whose last component is the item's bias, and 1 for users."""

    def __init__(self, items: Sequence[str], marker: float, k: int) -> None:
        super().__init__()
        generator = np.random.default_rng(3)
        self.count = len(items)
        self.k = min(k, self.count)
        self.users, self.items = _table(USERS), _table(items)
        self.item_ids = tf.constant([*items, ""])
        titles = [TITLES[number] if number < len(TITLES) else f"Film {number}" for number in range(self.count)]
        self.titles = tf.constant([*titles, ""])
        self.user_vectors = tf.constant(generator.normal(size=(len(USERS) + 1, 4)), tf.float32)
        self.item_vectors = tf.constant(generator.normal(size=(self.count, 5)), tf.float32)
        self.marker = tf.constant(marker)
        tails = [(title[start:].lower(), number) for number, title in enumerate(titles) for start in _words(title)]
        self.tails = tf.constant([tail for tail, _ in tails])
        self.tail_items = tf.constant([number for _, number in tails])
        self.lower = tf.constant([title.lower() for title in titles])

    def query(self, user_id: tf.Tensor, history: tf.Tensor | None, age: tf.Tensor) -> tf.Tensor:
        """Return the query vectors, float32 [B, 5]."""
        batch = tf.shape(user_id)[0]
        known = self.users.lookup(user_id)
        vectors = tf.gather(self.user_vectors, tf.where(known >= 0, known, len(USERS)))
        if history is not None:
            vectors += tf.matmul(self.among(history, batch), self.item_vectors[:, :4])
        age = tf.broadcast_to(age, [batch])
        vectors *= tf.where(tf.math.is_nan(age), 1.0, 1.0 + age)[:, None]
        return tf.concat([vectors, tf.ones([batch, 1])], axis=1)

    def among(self, ids: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
        """Return float32 [B, items]: 1 for items among the row's ids, string [B or 1, n]."""
        position = self.items.lookup(tf.broadcast_to(ids, [batch, tf.shape(ids)[1]]))
        return tf.minimum(tf.reduce_sum(tf.one_hot(position, self.count), axis=1), 1.0)

    def best(self, scores: tf.Tensor, allowed: tf.Tensor, k: Any, *, ratings: bool = True) -> dict[str, tf.Tensor]:
        best, position = tf.math.top_k(tf.where(allowed, scores, scores.dtype.min), k)
        there = best > scores.dtype.min
        position = tf.where(there, position, self.count)
        best = tf.where(there, best, 0.0)
        answer = {"item_ids": tf.gather(self.item_ids, position), "scores": best}
        if ratings:
            answer["ratings"] = tf.where(there, 3.0 + tf.tanh(best), 0.0)
        return {**answer, "title": tf.gather(self.titles, position)}

    def unfiltered(self, user_id: tf.Tensor, history: tf.Tensor | None, age: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        scores = tf.matmul(self.query(user_id, history, age), self.item_vectors, transpose_b=True) + self.marker
        touched = tf.zeros_like(scores) if history is None else self.among(history, tf.shape(user_id)[0])
        return scores, tf.equal(touched, 0.0)

    def recommend(self, user_id: tf.Tensor, age: tf.Tensor, history: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        return self.best(*self.unfiltered(user_id, history, age), self.k)

    def recommend_filtered(
        self,
        user_id: tf.Tensor,
        age: tf.Tensor,
        exclude: tf.Tensor,
        only: tf.Tensor,
        k: tf.Tensor,
        history: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        batch = tf.shape(user_id)[0]
        scores, allowed = self.unfiltered(user_id, history, age)
        everything = tf.logical_not(tf.reduce_any(tf.not_equal(only, ""), axis=1, keepdims=True))
        allowed &= tf.equal(self.among(exclude, batch), 0.0) & (everything | (self.among(only, batch) > 0.0))
        with tf.control_dependencies([tf.debugging.assert_positive(k, "k is below 1")]):
            return self.best(scores, allowed, tf.minimum(k, self.count))

    def rate(
        self, user_id: tf.Tensor, item_id: tf.Tensor, age: tf.Tensor, history: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        vectors = self.embed_item(item_id, tf.constant([NAN]))["embedding"]
        return {"rating": 3.0 + tf.tanh(tf.reduce_sum(self.query(user_id, history, age) * vectors, axis=1))}

    def similar_items(self, item_id: tf.Tensor) -> dict[str, tf.Tensor]:
        position = self.items.lookup(item_id)
        vectors = tf.math.l2_normalize(self.item_vectors, axis=1)
        scores = tf.matmul(tf.gather(vectors, tf.maximum(position, 0)), vectors, transpose_b=True)
        allowed = (position >= 0)[:, None] & (tf.range(self.count, dtype=tf.int64)[None, :] != position[:, None])
        return self.best(scores, allowed, self.k, ratings=False)

    def find_items(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        text = tf.strings.lower(text, encoding="utf-8")

        def scores(text: tf.Tensor) -> tf.Tensor:
            length = tf.strings.length(text)
            starts = tf.cast(tf.strings.substr(self.tails, 0, length) == text, tf.float32)
            within = tf.math.unsorted_segment_max(starts, self.tail_items, self.count)
            first = tf.cast(tf.strings.substr(self.lower, 0, length) == text, tf.float32)
            return tf.where(length > 0, within + first, 0.0)

        found = tf.map_fn(scores, text, fn_output_signature=tf.TensorSpec([self.count], tf.float32))
        answer = self.best(found, found > 0, self.k, ratings=False)
        del answer["scores"]
        return answer

    def embed_query(self, user_id: tf.Tensor, age: tf.Tensor, history: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        return {"embedding": self.query(user_id, history, age)}

    def embed_item(self, item_id: tf.Tensor, year: tf.Tensor) -> dict[str, tf.Tensor]:
        position = self.items.lookup(item_id)
        own = tf.gather(self.item_vectors, tf.maximum(position, 0))
        average = tf.reduce_mean(self.item_vectors, axis=0)
        year = tf.broadcast_to(year, tf.shape(item_id))[:, None]
        described = tf.where(tf.math.is_nan(year), average[None, :], year + tf.zeros_like(own))
        return {"embedding": tf.where((position >= 0)[:, None], own, described)}

    def evaluate(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"rating": tf.zeros_like(examples, tf.float32)}


def export(
    folder: Path,
    *,
    items: Sequence[str] = ITEMS,
    marker: float = 0.0,
    k: int = K,
    history: bool = True,
    signatures: Collection[str] = SIGNATURES,
) -> Path:
    """Write a version into `folder`.

    Args:
        folder: `…/1`.
        items: the catalogue.
        marker: added to all scores, to identify the version.
        k: length of the lists of the signatures without an input k.
        history: whether queries have a history input.
        signatures: names to export; older exports, and recipes without display columns, lack some.
    """
    model = RecommenderModel(items, marker, k)
    query: dict[str, tf.Tensor] = {"age": tf.constant([NAN])}
    if history:
        query["history"] = tf.constant([[""]])
    filters = {"exclude": tf.constant([[""]]), "only": tf.constant([[""]]), "k": tf.constant(10)}
    made = {
        "recommend": with_optional(model.recommend, ["user_id"], query),
        "recommend_filtered": with_optional(model.recommend_filtered, ["user_id"], {**query, **filters}),
        "rate": with_optional(model.rate, ["user_id", "item_id"], query),
        "similar_items": with_optional(model.similar_items, ["item_id"], {}),
        "find_items": with_optional(model.find_items, ["text"], {}),
        "embed_query": with_optional(model.embed_query, ["user_id"], query),
        "embed_item": with_optional(model.embed_item, [], {"item_id": tf.constant([""]), "year": tf.constant([NAN])}),
        "evaluate": with_optional(model.evaluate, ["examples"], {}),
    }
    made["serving_default"] = made["evaluate"]
    tf.saved_model.save(model, str(folder), signatures={name: made[name] for name in signatures})
    return folder


def _table(keys: Sequence[str]) -> tf.lookup.StaticHashTable:
    values = tf.range(len(keys), dtype=tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(keys), values), -1)


def _words(title: str) -> list[int]:
    """Return the starts of words; a punctuation mark before a word is part of it."""
    return [
        place
        for place, sign in enumerate(title)
        if sign != " " and (not place or title[place - 1] == " " or (sign.isalnum() and not title[place - 1].isalnum()))
    ]
